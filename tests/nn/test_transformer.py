import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.nn import ModelConfig, Seq2Seq, Transformer, abstract_params, split
from transformer_jax.nn.attention import causal_mask, padding_mask
from transformer_jax.system import UserError

SIZES = {"d_model": 8, "num_heads": 2, "d_ff": 12, "num_encoder_layers": 1, "num_decoder_layers": 2}
SOURCE = jnp.array([[3, 4, 5, 6], [7, 3, 0, 0]])
TARGET = jnp.array([[1, 5, 6], [1, 4, 0]])


def vectors(seed, *shape):
    return jax.random.normal(jax.random.key(seed), (*shape, SIZES["d_model"]))


@pytest.fixture(scope="module")
def model():
    return Transformer(ModelConfig(**SIZES), rngs=nnx.Rngs(0))


def test_equals_the_stacks_of_a_seq2seq():
    config = ModelConfig(**SIZES, norm_first=True, source_vocab_size=9, target_vocab_size=9)
    whole = Seq2Seq(config, rngs=nnx.Rngs(1))
    _, params = split(whole)
    graphdef, _ = abstract_params(Transformer, config)
    inside = nnx.merge(graphdef, {name: params[name] for name in ("encoder", "decoder")})
    source, target = (
        embedder(whole.target_embedding, tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))
        for embedder, tokens in ((whole.source_embedder, SOURCE), (whole.target_embedder, TARGET))
    )
    found = inside(source, target, padding_mask(SOURCE), padding_mask(TARGET) & causal_mask(3), padding_mask(SOURCE))
    expected = whole.hidden(SOURCE, TARGET)
    np.testing.assert_allclose(found[TARGET != 0], expected[TARGET != 0], rtol=1e-5, atol=1e-6)


def test_masks_are_explicit(model):
    source, target = vectors(1, 2, 4), vectors(2, 2, 3)
    masks = (jnp.ones((1, 1, *shape), bool) for shape in ((4, 4), (3, 3), (3, 4)))
    np.testing.assert_allclose(model(source, target), model(source, target, *masks), rtol=1e-6, atol=1e-6)

    def depends(gradient):
        return (np.abs(gradient).max(axis=(0, 2)) > 1e-6).tolist()

    # The sum of a normalized vector is constant, so take the gradient of its cubes.
    gradient = jax.jit(jax.grad(lambda *a, **k: jnp.sum(model(*a, **k)[:, 0] ** 3), argnums=(0, 1)))
    assert [*map(depends, gradient(source, target))] == [[True] * 4, [True] * 3]
    of_source, of_target = gradient(
        source, target, target_mask=causal_mask(3), memory_mask=jnp.array([[True, False, True, True]])[:, None, None]
    )
    assert depends(of_target) == [True, False, False]
    assert depends(of_source) == [True] * 4, "every position is seen through the encoder"
    alone = jnp.eye(4, dtype=bool)[None, None]
    of_source, _ = gradient(source, target, alone, memory_mask=jnp.array([[True, False, True, True]])[:, None, None])
    assert depends(of_source) == [True, False, True, True]


@pytest.mark.parametrize(
    ("options", "has_norm"), [({}, False), ({"final_norm": True}, True), ({"norm_first": True}, True)]
)
def test_both_stacks_may_end_with_a_norm(options, has_norm):
    _, shapes = abstract_params(Transformer, ModelConfig(**SIZES, **options))
    assert set(shapes) == {"encoder", "decoder"}
    assert [set(shapes[side]) for side in shapes] == [{"layers", *(["norm"] if has_norm else [])}] * 2


def test_dropout_comes_with_a_key_and_attention_is_recorded(model):
    source, target = vectors(1, 2, 4), vectors(2, 2, 3)
    record = []
    plain = model(source, target, record=record)
    assert [weights.shape for weights in record] == [(2, 2, 4, 4), *[(2, 2, 3, 3), (2, 2, 3, 4)] * 2]
    outputs = [model(source, target, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.abs(outputs[0] - outputs[2]).max() > 0.01
    assert np.abs(outputs[0] - plain).max() > 0.01


def test_invalid_sizes_are_refused():
    with pytest.raises(UserError, match=r"num_heads is 3, but must be a divisor of d_model=8"):
        Transformer(ModelConfig(**SIZES | {"num_heads": 3}), rngs=nnx.Rngs(0))
