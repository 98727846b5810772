import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.nn.attention import causal_mask, segment_mask, sinusoidal_positions
from transformer_jax.nn.losses import smoothed_cross_entropy
from transformer_jax.system import UserError

VOCAB = 13
SMALL = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.5,
    max_positions=16,
    source_vocab_size=VOCAB,
    target_vocab_size=VOCAB,
)
OPTIONS = {
    "the paper's": {"num_encoder_layers": 2, "num_decoder_layers": 2},
    "pre-norm, learned": {"norm_first": True, "positions": "learned", "activation": "swish"},
    "untied": {"tie_embeddings": "none", "source_vocab_size": VOCAB + 4, "scale_embeddings": False},
    "Marian's and PyTorch's": {"tie_embeddings": "inputs", "output_bias": True, "final_norm": True},
}
EXACT = {"atol": 2e-6, "rtol": 2e-6}

SOURCE = jnp.array([[5, 3, 9, 4, 2], [7, 8, 2, 0, 0]])
TARGET = jnp.array([[1, 6, 7, 3], [1, 4, 0, 0]])


def build(**changes):
    """A model with every parameter moved away from its initial zeros and ones."""
    graphdef, params = split(Seq2Seq(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0)))
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
    return jax.jit(lambda *args, **kwargs: nnx.merge(graphdef, params)(*args, **kwargs))


def test_dropout_is_applied_to_embeddings_and_sub_layers():
    """Section 5.4; two sub-layers in a layer of the encoder, three in one of the decoder."""
    model = nnx.merge(*build(num_encoder_layers=2, num_decoder_layers=3))
    program = jax.make_jaxpr(lambda key: model(SOURCE, TARGET, dropout_key=key))(jax.random.key(0))
    assert str(program).count("= random_bits") == (1 + 2 * 2) + (1 + 3 * 3)


def test_a_later_target_token_moves_no_earlier_logit(logits):
    before = logits(SOURCE, TARGET)
    after = logits(SOURCE, TARGET.at[0, 2].set(11))
    np.testing.assert_array_equal(before[0, :2], after[0, :2])
    assert (before[0, 2:] != after[0, 2:]).any(-1).all()


def test_a_pad_moves_no_logit(logits):
    before = logits(SOURCE, TARGET)
    # Padding becomes words, but the segments still mark it as padding.
    segments = {"source_segments": (SOURCE != 0).astype(int), "target_segments": (TARGET != 0).astype(int)}
    filled = logits(jnp.where(SOURCE == 0, 12, SOURCE), jnp.where(TARGET == 0, 12, TARGET), **segments)
    np.testing.assert_array_equal(before[TARGET != 0], filled[TARGET != 0])
    wider = logits(jnp.pad(SOURCE, ((0, 0), (0, 3))), jnp.pad(TARGET, ((0, 0), (0, 3))))[:, : TARGET.shape[1]]
    np.testing.assert_allclose(before[TARGET != 0], wider[TARGET != 0], **EXACT)
    # Marked as a word, the same token does move the logits.
    assert (logits(SOURCE.at[1, 3].set(12), TARGET)[1, :2] != before[1, :2]).any(-1).all()


def test_another_sentence_of_the_batch_moves_no_logit(logits):
    before = logits(SOURCE, TARGET)
    after = logits(SOURCE.at[1].set(6), TARGET.at[1].set(6))
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


def test_logits_have_no_gradient_for_masked_inputs(built):
    model = nnx.merge(*built)

    @jax.jit
    @jax.grad
    def gradient(embedded):
        x, memory = embedded
        source_segments, target_segments = SOURCE != 0, TARGET != 0
        encoded = model.encoder(memory, segment_mask(source_segments.astype(int), source_segments.astype(int)))
        mask = segment_mask(target_segments.astype(int), target_segments.astype(int)) & causal_mask(4)
        memory_mask = segment_mask(target_segments.astype(int), source_segments.astype(int))
        # The second logits of the second sentence: two real target tokens, three real source tokens.
        return jnp.sum(model.logits(model.decoder(x, encoded, mask, memory_mask))[1, 1] ** 2)

    keys = jax.random.split(jax.random.key(2))
    d_x, d_memory = gradient((jax.random.normal(keys[0], (2, 4, 16)), jax.random.normal(keys[1], (2, 5, 16))))
    np.testing.assert_array_equal((d_x != 0).any(-1), [[0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal((d_memory != 0).any(-1), [[0, 0, 0, 0, 0], [1, 1, 1, 0, 0]])


def test_packed_equals_unpacked(built):
    graphdef, params = built
    # Both sentences of SOURCE and TARGET in one row.
    packed = {
        "source": jnp.array([[5, 3, 9, 4, 2, 7, 8, 2, 0]]),
        "source_segments": jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 0]]),
        "source_positions": jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 0]]),
        "target": jnp.array([[1, 6, 7, 3, 1, 4, 0]]),
        "target_segments": jnp.array([[1, 1, 1, 1, 2, 2, 0]]),
        "target_positions": jnp.array([[0, 1, 2, 3, 0, 1, 0]]),
    }
    unpacked = {"source": SOURCE, "target": TARGET}
    labels = {"packed": jnp.array([[6, 7, 3, 2, 4, 2, 0]]), "unpacked": jnp.array([[6, 7, 3, 2], [4, 2, 0, 0]])}

    def loss(params, batch, labels):
        losses = smoothed_cross_entropy(nnx.merge(graphdef, params)(**batch), labels, 0.1)
        return jnp.sum(losses * (labels != 0))

    loss_and_gradient = jax.jit(jax.value_and_grad(loss))
    actual = loss_and_gradient(params, packed, labels["packed"])
    expected = loss_and_gradient(params, unpacked, labels["unpacked"])
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), actual[1], expected[1])


def test_cached_equals_uncached(built, logits):
    graphdef, params = built
    model = nnx.merge(graphdef, params)
    beams = jnp.stack([TARGET, jnp.array([[1, 9, 9, 8], [1, 3, 5, 10]])], axis=1)
    # One row per hypothesis, without padding, which a search never feeds to a live hypothesis.
    beams = jnp.where(beams == 0, 12, beams)
    expected = logits(jnp.repeat(SOURCE, 2, axis=0), beams.reshape(4, 4)).reshape(2, 2, 4, VOCAB)

    memory = model.remember(SOURCE)
    cache = model.empty_cache(2, 2, max_length=6)
    step = jax.jit(model.step)
    for position in range(4):
        actual, cache = step(beams[:, :, position], cache, memory)
        np.testing.assert_allclose(actual, expected[:, :, position], **EXACT)
    assert int(cache.length) == 4


def test_attention_weights_are_those_of_every_layer(built):
    model = nnx.merge(*built)
    layers = model.config.num_encoder_layers
    weights = jax.jit(model.attention_weights)(SOURCE, TARGET)
    assert weights.encoder.shape == (2, layers, 2, 5, 5)
    assert weights.decoder.shape == (2, layers, 2, 4, 4)
    assert weights.cross.shape == (2, layers, 2, 4, 5)
    for part in weights:
        np.testing.assert_allclose(part.sum(-1), 1, atol=1e-6)
    # The second sentence has three source and two target tokens.
    assert not weights.encoder[1, :, :, :3, 3:].any()
    assert not weights.cross[1, :, :, :2, 3:].any()
    assert not np.triu(weights.decoder[0], 1).any()
    assert (weights.cross[1, :, :, :2, :3] > 0).all()


def test_dropout_is_a_function_of_its_key(built, logits):
    call = jax.jit(lambda key: logits(SOURCE, TARGET, dropout_key=key))
    first, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != logits(SOURCE, TARGET)).any()


def test_dropout_at_rate_0_drops_nothing():
    model = jax.jit(nnx.merge(*build(dropout_rate=0.0)))
    np.testing.assert_array_equal(model(SOURCE, TARGET, dropout_key=jax.random.key(0)), model(SOURCE, TARGET))


@pytest.mark.parametrize(
    ("tie_embeddings", "tables"),
    [
        ("all", ["target"]),
        ("output", ["source", "target"]),
        ("inputs", ["output", "target"]),
        ("none", ["output", "source", "target"]),
    ],
)
def test_tying_shares_one_matrix(tie_embeddings, tables):
    graphdef, params = build(tie_embeddings=tie_embeddings)
    found = sorted(name.removesuffix("_embedding") for name in params if name not in ("encoder", "decoder"))
    assert found == tables

    def reads(name):
        """Whether source, target and output depend on the matrix `name`."""

        def parts(table):
            model = nnx.merge(graphdef, params | {name: {"table": table}})
            fixed = jnp.ones((2, 5, 16))
            encoded = model.encode(SOURCE, jnp.ones_like(SOURCE))
            decoded = model.decode(TARGET, fixed, jnp.ones_like(TARGET), jnp.ones_like(SOURCE))
            return encoded, decoded, model.logits(fixed)

        parts, table = jax.jit(parts), params[name]["table"]
        pairs = zip(parts(table), parts(table + jax.random.normal(jax.random.key(0), table.shape)), strict=True)
        return [bool((before != after).any()) for before, after in pairs]

    expected = {
        "all": {"target_embedding": [True, True, True]},
        "output": {"source_embedding": [True, False, False], "target_embedding": [False, True, True]},
        "inputs": {"target_embedding": [True, True, False], "output_embedding": [False, False, True]},
        "none": {
            "source_embedding": [True, False, False],
            "target_embedding": [False, True, False],
            "output_embedding": [False, False, True],
        },
    }
    assert {name: reads(name) for name in expected[tie_embeddings]} == expected[tie_embeddings]


def test_the_bias_is_added_to_the_logits():
    graphdef, params = build(output_bias=True)
    plain, _ = build()
    without = {name: value for name, value in params.items() if name != "output_bias"}
    logits, before = (nnx.merge(g, p)(SOURCE, TARGET) for g, p in ((graphdef, params), (plain, without)))
    np.testing.assert_allclose(logits, before + params["output_bias"], rtol=1e-6)


@pytest.mark.parametrize(("norm_first", "final_norm"), [(False, True), (True, True), (True, False), (False, False)])
def test_stacks_end_with_a_norm_if_configured(norm_first, final_norm):
    _, params = build(norm_first=norm_first, final_norm=final_norm)
    assert ["norm" in params[side] for side in ("encoder", "decoder")] == [norm_first or final_norm] * 2


def test_a_target_may_start_with_the_id_of_padding():
    """As in Marian: its id is padding only at other positions."""
    model = jax.jit(nnx.merge(*build()))
    target = TARGET.at[:, 0].set(0)
    logits = model(SOURCE, target)
    np.testing.assert_allclose(logits, model(SOURCE, target, target_segments=(TARGET != 0).astype(int)), **EXACT)
    moved = nnx.merge(*build())
    table = moved.target_embedding.table
    table[...] = table[...].at[0].add(1.0)
    assert (np.abs(moved(SOURCE, target) - logits)[:, :2] > 1e-3).any(axis=(1, 2)).all()


@pytest.mark.parametrize(("scale_embeddings", "factor"), [(True, 4.0), (False, 1.0)])
def test_embeddings_are_scaled_and_include_positions(scale_embeddings, factor):
    graphdef, params = build(num_encoder_layers=0, scale_embeddings=scale_embeddings)
    positions = jnp.array([[0, 1, 2, 0, 1], [4, 3, 2, 1, 0]])
    embedded = nnx.merge(graphdef, params).encode(SOURCE, jnp.ones_like(SOURCE), positions)
    expected = factor * params["target_embedding"]["table"][SOURCE] + sinusoidal_positions(positions, 16)
    np.testing.assert_allclose(embedded, expected, atol=1e-6)


def test_bfloat16_keeps_float32_parameters_and_comes_close():
    graphdef, params = build(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    narrow = jax.jit(nnx.merge(graphdef, params))(SOURCE, TARGET)
    assert narrow.dtype == jnp.float32
    wide = jax.jit(nnx.merge(build()[0], params))(SOURCE, TARGET)
    real = TARGET != 0
    assert float(jnp.abs(narrow - wide)[real].max()) > 0
    np.testing.assert_allclose(narrow[real], wide[real], atol=0.05 * float(jnp.abs(wide).max()))


def test_the_base_model_has_the_number_of_parameters_in_the_paper():
    config = ModelConfig(
        d_model=512,
        num_heads=8,
        d_ff=2048,
        num_encoder_layers=6,
        num_decoder_layers=6,
        source_vocab_size=37000,
        target_vocab_size=37000,
    )
    shapes = jax.eval_shape(lambda: split(Seq2Seq(config, rngs=nnx.Rngs(0)))[1])
    # Table 3: 65 million.
    assert 62e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 66e6


ATTENTION_DROPOUT = "attention_dropout_rate"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_heads": 3}, "num_heads"),
        ({"num_heads": 0}, "num_heads"),
        ({"d_model": 15, "num_heads": 3}, "d_model"),
        ({"activation": "tanh"}, "activation"),
        ({"positions": "rotary"}, "positions"),
        ({"tie_embeddings": "some"}, "tie_embeddings"),
        ({"dtype": "float16"}, "dtype"),
        ({"target_vocab_size": 0}, "target_vocab_size"),
        ({"source_vocab_size": 4}, "tie_embeddings"),
        ({"attention_implementation": "flash"}, "attention_implementation"),
        ({"attention_implementation": "cudnn"}, "dtype"),
        ({"attention_implementation": "cudnn", "dtype": "bfloat16", "attention_dropout_rate": 0.1}, ATTENTION_DROPOUT),
        ({"attention_dropout_rate": -0.1}, ATTENTION_DROPOUT),
        ({"dropout_rate": 1.5}, "dropout_rate"),
        ({"dropout_rate": -0.1}, "dropout_rate"),
        ({"dropout_rate": float("nan")}, "dropout_rate"),
        ({"num_encoder_layers": -1}, "num_encoder_layers"),
        ({"num_decoder_layers": -1}, "num_decoder_layers"),
    ],
)
def test_invalid_fields_are_named(changes, field):
    with pytest.raises(UserError, match=rf"config\.model\.{field} is "):
        Seq2Seq(dataclasses.replace(SMALL, **changes), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("slots", [4, 2], ids=["enough room", "more room later"])
def test_hypotheses_move_with_their_past(built, logits, slots):
    model = nnx.merge(*built)
    beams = jnp.array([[[1, 9, 9, 8], [1, 3, 5, 10]], [[1, 4, 6, 7], [1, 8, 3, 12]]])
    parents = jnp.array([[[1, 0], [0, 0], [1, 1]], [[0, 1], [1, 0], [0, 0]]])
    memory = model.remember(SOURCE)
    cache = model.empty_cache(2, 2, max_length=slots)
    step, read = jax.jit(model.step), beams[:, :, :1]
    for position in range(1, 4):
        _, cache = step(read[:, :, -1], cache, memory)
        chosen = parents[:, position - 1]
        cache = cache.reordered(chosen)
        if position == slots:
            cache = cache.lengthened(5)
        read = jnp.take_along_axis(read, chosen[:, :, None], axis=1)
        read = jnp.concatenate([read, beams[:, :, position : position + 1]], axis=2)
    actual, _ = step(read[:, :, -1], cache, memory)
    expected = logits(jnp.repeat(SOURCE, 2, axis=0), read.reshape(4, 4))[:, -1].reshape(2, 2, VOCAB)
    np.testing.assert_allclose(actual, expected, **EXACT)


def test_a_structure_may_be_any_argument_of_a_jitted_function(built):
    graphdef, params = built
    merged = jax.jit(lambda graphdef, params: nnx.merge(graphdef, params)(SOURCE, TARGET).shape)(graphdef, params)
    assert tuple(map(int, merged)) == (2, 4, VOCAB)
    assert hash(graphdef) == hash(split(nnx.merge(graphdef, params))[0])
    assert graphdef == split(nnx.merge(graphdef, params))[0]
