"""Scanned layers equal unrolled ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import Classifier, ModelConfig, Seq2Seq, Transformer, abstract_params, split
from transformer_jax.nn.stacks import ScannedLayers, stack_layers, unstack_layers

UNROLLED = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.5,
    attention_dropout_rate=0.25,
    source_vocab_size=13,
    target_vocab_size=13,
    num_classes=3,
)
SCANNED = dataclasses.replace(UNROLLED, scan_layers=True)
SOURCE = jnp.array([[5, 3, 9, 4, 2], [7, 8, 2, 0, 0]])
TARGET = jnp.array([[1, 6, 7, 3], [1, 4, 0, 0]])
VECTORS = jax.random.normal(jax.random.key(3), (2, 5, 16))
CALLS = {
    Seq2Seq: lambda model, **options: model(SOURCE, TARGET, **options),
    Classifier: lambda model, **options: model(SOURCE, **options),
    Transformer: lambda model, **options: model(VECTORS, VECTORS[:, :4], **options),
}


def params_of(model, config, seed=0):
    """Parameters moved away from their initial zeros and ones."""
    _, params = split(model(config, rngs=nnx.Rngs(seed)))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


def assert_same(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **tolerance), actual, expected)


@functools.cache
def loss_and_gradients(model, config):
    """Outputs and unstacked gradients of the same parameters, with dropout."""
    graphdef, _ = abstract_params(model, config)
    params = params_of(model, dataclasses.replace(config, scan_layers=False))

    def loss(params, key):
        outputs = CALLS[model](nnx.merge(graphdef, params), dropout_key=key)
        return jnp.sin(outputs).sum(), outputs

    params = stack_layers(params) if config.scan_layers else params
    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, jax.random.key(5))
    return outputs, unstack_layers(gradients)


def changed(**changes):
    return dataclasses.replace(UNROLLED, **changes)


@pytest.mark.parametrize(("model", "norm_first"), [(Seq2Seq, False), (Classifier, True)])
def test_scanned_equals_unrolled(model, norm_first):
    """Including dropout: the same keys go to the same layers."""
    expected = loss_and_gradients(model, changed(norm_first=norm_first))
    actual = loss_and_gradients(model, changed(norm_first=norm_first, scan_layers=True))
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert_same(actual[1], expected[1], rtol=1e-4, atol=1e-5)
    without = CALLS[model](nnx.merge(abstract_params(model, UNROLLED)[0], params_of(model, UNROLLED)))
    assert np.abs(without - expected[0]).max() > 0.01, "dropout is active"


@pytest.mark.parametrize("remat", ["dots", "full"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_changes_no_result(scan_layers, remat):
    expected = loss_and_gradients(Classifier, UNROLLED)
    outputs, gradients = loss_and_gradients(Classifier, changed(scan_layers=scan_layers, remat=remat))
    np.testing.assert_allclose(outputs, expected[0], rtol=1e-5, atol=1e-5)
    assert_same(gradients, expected[1], rtol=1e-4, atol=1e-5)


def test_remat_saves_memory():
    """In a deep stack, where the activations kept for the backward pass dominate."""

    def megabytes(remat):
        config = changed(num_encoder_layers=8, scan_layers=True, remat=remat, attention_dropout_rate=0.0)
        graphdef, params = abstract_params(Classifier, config)
        tokens = jax.ShapeDtypeStruct((32, 16), jnp.int32)

        def loss(params, tokens, key):
            return jnp.sin(nnx.merge(graphdef, params)(tokens, dropout_key=key)).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params, tokens, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    none, dots, full = map(megabytes, ("none", "dots", "full"))
    assert full < 0.7 * dots < 0.7 * 0.9 * none


@pytest.mark.parametrize("model", CALLS)
def test_scanned_models_draw_what_others_draw(model):
    rngs = [nnx.Rngs(7), nnx.Rngs(7)]
    unrolled, scanned = (
        split(model(config, rngs=own))[1] for config, own in zip((UNROLLED, SCANNED), rngs, strict=True)
    )
    assert_same(unstack_layers(scanned), unrolled, rtol=0, atol=1e-7)
    assert len({int(own.params.count[...]) for own in rngs}) == 1, "the next draw is the same, too"


def test_stacking_round_trips():
    shapes = abstract_params(Seq2Seq, SCANNED)[1]
    params = split(Seq2Seq(UNROLLED, rngs=nnx.Rngs(0)))[1]
    stacked = stack_layers(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert len(jax.tree.leaves(stacked)) < len(jax.tree.leaves(params))
    assert_same(unstack_layers(stacked), params, rtol=0)
    assert_same(unstack_layers(params), params, rtol=0)


def test_a_scanned_model_without_layers():
    config = dataclasses.replace(SCANNED, num_encoder_layers=0)
    model = Classifier(config, rngs=nnx.Rngs(0))
    assert CALLS[Classifier](model).shape == (2, 1, 3)
    assert_same(unstack_layers(split(model)[1]), split(model)[1])


def test_scanned_layers_look_like_a_list():
    """So that decoding and attention weights need no special case."""
    params = params_of(Seq2Seq, UNROLLED)
    unrolled, scanned = (
        nnx.merge(abstract_params(Seq2Seq, config)[0], given)
        for config, given in ((UNROLLED, params), (SCANNED, stack_layers(params)))
    )
    assert isinstance(scanned.decoder.layers, ScannedLayers)
    assert_same(scanned.attention_weights(SOURCE, TARGET), unrolled.attention_weights(SOURCE, TARGET), atol=1e-6)

    options = SearchOptions(beam_size=2, max_extra_tokens=3)
    sources = [[5, 3, 9, 4, 2], [7, 8, 2]]
    found = [
        Generator(abstract_params(Seq2Seq, config)[0], batch_size=2).generate(given, sources, options)
        for config, given in ((UNROLLED, params), (SCANNED, stack_layers(params)))
    ]
    assert [[h.tokens for h in hypotheses] for hypotheses in found[0]] == [
        [h.tokens for h in hypotheses] for hypotheses in found[1]
    ]


def test_vectors_may_be_wider_than_the_computation():
    params = stack_layers(params_of(Transformer, UNROLLED))
    graphdef, _ = abstract_params(Transformer, dataclasses.replace(SCANNED, dtype="bfloat16"))
    assert CALLS[Transformer](nnx.merge(graphdef, params)).dtype == jnp.float32
