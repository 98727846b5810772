import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.nn import Classifier, ModelConfig, abstract_params, split
from transformer_jax.nn.attention import segment_mask
from transformer_jax.nn.classifier import pool
from transformer_jax.system import UserError

VOCAB, CLASSES = 13, 3
SMALL = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_encoder_layers=1,
    dropout_rate=0.5,
    max_positions=16,
    source_vocab_size=VOCAB,
    num_classes=CLASSES,
)
OPTIONS = {
    "mean": {},
    "first": {"pooling": "first", "num_encoder_layers": 2},
    "pre-norm, learned": {"norm_first": True, "positions": "learned"},
}
EXACT = {"atol": 2e-6, "rtol": 2e-6}

TOKENS = jnp.array([[5, 3, 9, 4, 6], [7, 8, 10, 0, 0]])
PACKED = {
    # Both texts of TOKENS in one row.
    "tokens": jnp.array([[5, 3, 9, 4, 6, 7, 8, 10, 0]]),
    "segments": jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 0]]),
    "positions": jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 0]]),
}


def build(**changes):
    """A model with every parameter moved away from its initial zeros and ones."""
    graphdef, params = split(Classifier(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return graphdef, jax.tree.unflatten(tree, moved)


@pytest.fixture(scope="module", params=OPTIONS.values(), ids=OPTIONS)
def built(request):
    return build(**request.param)


@pytest.fixture(scope="module")
def logits(built):
    """The model as one jitted function of arrays."""
    graphdef, params = built
    call = jax.jit(
        lambda tokens, num_segments, **kwargs: nnx.merge(graphdef, params)(tokens, num_segments=num_segments, **kwargs),
        static_argnums=1,
    )
    return lambda tokens, num_segments=1, **kwargs: call(tokens, num_segments, **kwargs)


def test_the_head_reads_the_pooled_real_tokens(built, logits):
    graphdef, params = built
    model = nnx.merge(graphdef, params)
    encode = jax.jit(
        lambda tokens: model.encoder(model.embedder(model.embedding, tokens, jnp.arange(tokens.size)[None]))
    )
    for row, length in enumerate((5, 3)):
        # Without padding no mask is needed.
        vectors = np.asarray(encode(TOKENS[row, None, :length]), np.float64)[0]
        pooled = vectors[0] if model.config.pooling == "first" else vectors.sum(axis=0) / length
        expected = pooled @ np.asarray(params["head"]["kernel"], np.float64) + np.asarray(params["head"]["bias"])
        np.testing.assert_allclose(logits(TOKENS)[row, 0], expected, atol=1e-5)


def test_padding_moves_no_logit(logits):
    before = logits(TOKENS)
    # Padding becomes words, but the segments still mark it as padding.
    filled = logits(jnp.where(TOKENS == 0, 12, TOKENS), segments=(TOKENS != 0).astype(int))
    np.testing.assert_array_equal(before, filled)
    np.testing.assert_allclose(before, logits(jnp.pad(TOKENS, ((0, 0), (0, 4)))), **EXACT)
    # Marked as a word, the same token does move the logits.
    assert (logits(TOKENS.at[1, 3].set(12))[1] != before[1]).any()


def test_another_text_of_the_batch_moves_no_logit(logits):
    before = logits(TOKENS)
    after = logits(TOKENS.at[1].set(6))
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


def test_a_neighbour_in_the_row_moves_no_logit(logits):
    before = logits(num_segments=2, **PACKED)
    after = logits(num_segments=2, **(PACKED | {"tokens": PACKED["tokens"].at[0, 5:8].set(11)}))
    np.testing.assert_array_equal(before[0, 0], after[0, 0])
    assert (before[0, 1] != after[0, 1]).any()


def test_logits_have_no_gradient_for_masked_inputs(built):
    """Gradients of arbitrary embeddings: padding, other rows and neighbours could all affect the logits."""
    graphdef, params = built
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]])
    positions = jnp.array([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])

    @jax.jit
    @jax.grad
    def gradient(embedded):
        model = nnx.merge(graphdef, params)
        x = model.encoder(embedded, segment_mask(segments, segments))
        pooled = pool(x, segments, 2, positions if model.config.pooling == "first" else None)
        return jnp.sum(model.head(pooled)[0, 1] ** 2)  # the second text of the first row

    d_embedded = gradient(jax.random.normal(jax.random.key(2), (2, 6, 16)))
    np.testing.assert_array_equal((d_embedded != 0).any(-1), [[0, 0, 0, 1, 1, 0], [0] * 6])


def test_packed_equals_unpacked_in_value_and_gradient(built):
    graphdef, params = built

    def loss(params, packed):
        model = nnx.merge(graphdef, params)
        logits = model(**PACKED, num_segments=3)[0, :2] if packed else model(TOKENS)[:, 0]
        return jnp.sum(jnp.sin(logits)), logits

    loss_and_gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (_, actual), actual_gradient = loss_and_gradient(params, True)
    (_, expected), expected_gradient = loss_and_gradient(params, False)
    np.testing.assert_allclose(actual, expected, **EXACT)
    assert len(np.unique(actual)) == 2 * CLASSES
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), actual_gradient, expected_gradient
    )


def test_pooling_by_hand():
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    segments = jnp.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]])
    positions = jnp.array([[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    values, zeros = np.asarray(x, np.float64), np.zeros(4)
    means = [[values[0, :2].mean(0), values[0, 2:].mean(0), zeros], [values[1, :3].mean(0), zeros, zeros]]
    np.testing.assert_allclose(pool(x, segments, 3), means, atol=1e-6)
    firsts = [[values[0, 0], values[0, 2], zeros], [values[1, 0], zeros, zeros]]
    np.testing.assert_allclose(pool(x, segments, 3, positions), firsts, atol=1e-6)
    assert pool(x.astype(jnp.bfloat16), segments, 3).dtype == jnp.float32


def test_first_token_pooling_without_layers_reads_only_the_first_token():
    model = nnx.merge(*build(pooling="first", num_encoder_layers=0))
    before = model(TOKENS)
    np.testing.assert_array_equal(before, model(TOKENS.at[:, 1:].set(11)))
    assert (before != model(TOKENS.at[:, 0].set(11))).any(-1).all()


def test_dropout_is_a_function_of_its_key():
    call = jax.jit(nnx.merge(*build()))
    first, again, other = (call(TOKENS, dropout_key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != call(TOKENS)).any()
    never = jax.jit(nnx.merge(*build(dropout_rate=0.0)))
    np.testing.assert_array_equal(never(TOKENS, dropout_key=jax.random.key(0)), never(TOKENS))


def test_dropout_is_applied_before_the_head():
    """With zero embeddings and no layers, only the dropout of the pooled vector remains."""
    graphdef, params = build(num_encoder_layers=0, scale_embeddings=False)
    params["embedding"]["table"] = jnp.zeros((VOCAB, 16))
    model = nnx.merge(graphdef, params)
    logits = jax.jit(lambda keys: jax.vmap(lambda key: model(TOKENS[:1, :1], dropout_key=key))(keys))
    found = logits(jax.random.split(jax.random.key(0), 64))
    assert len(np.unique(np.asarray(found)[:, 0, 0, 0])) > 32


def test_attention_weights_are_recorded():
    model = nnx.merge(*build(num_encoder_layers=2))

    @jax.jit
    def weights():
        record = []
        model(TOKENS, record=record)
        return record

    record = weights()
    assert [weights.shape for weights in record] == [(2, 2, 5, 5)] * 2
    assert not record[0][1, :, :3, 3:].any()


def test_bfloat16_keeps_float32_parameters_and_comes_close():
    graphdef, params = build(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    narrow = jax.jit(nnx.merge(graphdef, params))(TOKENS)
    assert narrow.dtype == jnp.float32
    wide = jax.jit(nnx.merge(build()[0], params))(TOKENS)
    assert float(jnp.abs(narrow - wide).max()) > 0
    np.testing.assert_allclose(narrow, wide, atol=0.05 * float(jnp.abs(wide).max()))


def test_a_classifier_has_no_decoder():
    _, shapes = abstract_params(Classifier, SMALL)
    assert sorted(shapes) == ["embedding", "encoder", "head"]
    assert shapes["head"]["kernel"].shape == (16, CLASSES)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 1}, "num_classes"),
        ({"pooling": "max"}, "pooling"),
        ({"source_vocab_size": 0}, "source_vocab_size"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"num_heads": 3}, "num_heads"),
        ({"positions": "rotary"}, "positions"),
    ],
)
def test_invalid_fields_are_named(changes, field):
    with pytest.raises(UserError, match=rf"config\.model\.{field} is .*, but must be "):
        abstract_params(Classifier, dataclasses.replace(SMALL, **changes))


def test_seq2seq_fields_are_not_checked():
    abstract_params(Classifier, dataclasses.replace(SMALL, target_vocab_size=0, num_decoder_layers=0))
