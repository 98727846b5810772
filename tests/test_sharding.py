import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax import partition
from transformer_jax.config import MeshConfig
from transformer_jax.errors import UserError
from transformer_jax.losses import chunked_cross_entropy
from transformer_jax.models import ModelConfig, Seq2Seq, split, stack_layers, structure, unstack_layers
from transformer_jax.partition import RULES, partition_spec
from transformer_jax.sharding import make_mesh, place, state_shardings
from transformer_jax.steps import init_state, train_step

TINY = ModelConfig(
    d_model=16,
    num_heads=4,
    d_ff=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
    source_vocab_size=24,
    target_vocab_size=24,
)


class Pair(NamedTuple):
    source: np.ndarray
    target: np.ndarray


def make_batch(rows=8):
    rng = np.random.default_rng(0)
    source, target = (rng.integers(1, 24, (rows, length), dtype=np.int32) for length in (7, 5))
    source[::2, 4:] = 0
    return Pair(source, target)


@pytest.fixture(scope="module")
def model():
    return split(Seq2Seq(TINY, rngs=nnx.Rngs(0)))


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 1), (2, 4, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, -1, 1), (8, 1, 1)),
        ((1, 1, 8), (1, 1, 8)),
    ],
)
def test_mesh(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert set(mesh.devices.flat) == set(jax.devices())
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_of_some_devices():
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    assert list(mesh.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (4, 1, 1), (16, 1, 1), (-1, 16, 1)])
def test_mesh_that_does_not_fit(sizes):
    with pytest.raises(UserError, match=rf"config\.mesh is data={sizes[0]}, .* device count of 8"):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (-2, 1, 1), (-1, -1, 1), (-8, -1, 1)])
def test_impossible_sizes(sizes):
    with pytest.raises(UserError, match=r"config\.mesh .* positive"):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("encoder.layers.0.self_attention.query.kernel", P("fsdp", "tensor")),
        ("decoder.layers.5.cross_attention.value.bias", P("tensor")),
        ("decoder.layers.5.cross_attention.out.kernel", P("tensor", "fsdp")),
        ("decoder.layers.stacked.cross_attention.out.kernel", P(None, "tensor", "fsdp")),
        ("opt_state.0.mu.encoder.layers.stacked.self_attention.query.bias", P(None, "tensor")),
        ("encoder.layers.stacked.feed_forward_residual.norm.scale", P()),
        ("decoder.layers.5.cross_attention.out.bias", P()),
        ("encoder.layers.0.feed_forward.wide.kernel", P("fsdp", "tensor")),
        ("encoder.layers.0.feed_forward.narrow.kernel", P("tensor", "fsdp")),
        ("opt_state.1.0.mu.target_embedding.table", P("tensor", "fsdp")),
        ("table", P("tensor", "fsdp")),
        ("output.kernel", P()),
        ("encoder.layers.0.feed_forward_residual.norm.scale", P()),
        ("encoder.unquery.kernel", P()),
        ("encoder.query.kernel.row", P()),
        ("step", P()),
    ],
)
def test_rules(path, spec):
    assert partition_spec(path) == spec


def test_rules_do_not_collide():
    """Every matrix matches exactly one rule, other parameters at most one, and no rule is idle."""
    config = replace(TINY, output_bias=True, positions="learned")
    _, params = structure(Seq2Seq, config)
    used = set()
    for path, leaf in paths(params).items():
        matches = [pattern for pattern, _ in RULES if re.search(rf"(^|\.)({pattern})$", path)]
        assert len(matches) == 1 if leaf.ndim == 2 else len(matches) <= 1, path
        used.update(matches)
    assert used == {pattern for pattern, _ in RULES}


def test_a_collision_is_seen(monkeypatch):
    monkeypatch.setattr(partition, "RULES", (*RULES, (r"query\.\w+", P("data"))))
    with pytest.raises(ValueError, match=r"a\.query\.kernel matches the sharding rules"):
        partition_spec("a.query.kernel")


@pytest.mark.parametrize("optimizer", [optax.adam(1e-3), optax.adafactor(1e-3, min_dim_size_to_factor=8)])
def test_optimiser_state_lies_beside_its_parameters(model, optimizer):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    params = model[1]
    tree = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
    shardings = state_shardings(tree, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(tree)
    of_param, leaves, found = paths(shardings["params"]), paths(params), 0
    for path, leaf in paths(tree["opt_state"]).items():
        param = next((name for name in of_param if path.endswith(f".{name}")), None)
        if param is not None and leaf.shape == leaves[param].shape:
            assert paths(shardings["opt_state"])[path] == of_param[param]
            found += 1
    assert found >= len(leaves) / 2
    jax.device_put(tree, shardings)
    assert shardings["step"].is_fully_replicated


def test_a_dimension_that_does_not_divide():
    mesh = make_mesh(MeshConfig(1, 1, 8))
    tree = {"layer": {"wide": {"kernel": jax.ShapeDtypeStruct((16, 12), jnp.float32)}}}
    with pytest.raises(UserError, match=r"layer\.wide\.kernel has a dimension of 12, .* config\.mesh\.tensor=8"):
        state_shardings(tree, mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_rows_are_spread(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    batch = make_batch()
    placed = place(batch, mesh)
    assert type(placed) is Pair
    np.testing.assert_array_equal(placed.source, batch.source)
    assert {shard.data.shape for shard in placed.source.addressable_shards} == {(8 // (sizes[0] * sizes[1]), 7)}
    # The way that several processes go gives the same.
    piecewise = jax.make_array_from_process_local_data(NamedSharding(mesh, partition.ROWS), batch.source)
    assert piecewise.sharding == placed.source.sharding
    np.testing.assert_array_equal(piecewise, placed.source)


def test_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"config\.data\.tokens_per_batch makes batches of 6 rows"):
        place(make_batch(6), make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def loss_and_gradients(model):
    """A loss of the model with its logits and its gradients, jitted, and what it gives on one device."""
    graphdef, params = model

    def loss_and_logits(params, batch):
        logits = nnx.merge(graphdef, params)(batch.source, batch.target)
        return jnp.sin(logits).sum() / logits.size, logits

    function = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))
    return function, function(params, make_batch())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_sharded_equals_unsharded(model, loss_and_gradients, sizes):
    function, ((_, expected), expected_grads) = loss_and_gradients
    params = model[1]
    mesh = make_mesh(MeshConfig(*sizes))
    spread = jax.device_put(params, state_shardings(params, mesh))
    (_, actual), grads = function(spread, place(make_batch(), mesh))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), grads, expected_grads)
    kernel = spread["encoder"]["layers"][0]["feed_forward"]["wide"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (16 // sizes[1], 32 // sizes[2])


def test_scanned_layers_are_spread_likewise(model, loss_and_gradients):
    _, ((_, expected), expected_grads) = loss_and_gradients
    graphdef, _ = split(Seq2Seq(replace(TINY, scan_layers=True), rngs=nnx.Rngs(0)))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    stacked = stack_layers(model[1])
    spread = jax.device_put(stacked, state_shardings(stacked, mesh))
    kernel = spread["decoder"]["layers"]["stacked"]["feed_forward"]["wide"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 16 // 2, 32 // 2)

    def loss_and_logits(params, batch):
        logits = nnx.merge(graphdef, params)(batch.source, batch.target)
        return jnp.sin(logits).sum() / logits.size, logits

    (_, actual), grads = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(spread, place(make_batch(), mesh))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), unstack_layers(grads), expected_grads)


@pytest.fixture(scope="module")
def trained():
    """The training step, accumulating and with dropout, the state before it, and what one device makes of it."""
    graphdef, params = split(Seq2Seq(replace(TINY, dropout_rate=0.1), rngs=nnx.Rngs(0)))

    def loss_fn(params, batch, key):
        model = nnx.merge(graphdef, params)
        hidden = model.hidden(batch.source, batch.target, dropout_key=key)
        weights = (batch.source[:, :5] != 0).astype(jnp.float32)
        loss = chunked_cross_entropy(hidden, model.output_table, batch.target, weights, 0.1, 32)
        return {"loss": loss, "weight": weights.sum()}

    # Adam would divide a gradient that is 0 but for rounding by its own size.
    optimizer = optax.sgd(0.5, momentum=0.9)
    step = jax.jit(partial(train_step, loss_fn=loss_fn, optimizer=optimizer, seed=0, accumulate_steps=2))
    state = init_state(params, optimizer, ema=False)
    return step, state, step(state, make_batch(16))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_a_training_step_is_the_same_on_any_mesh(trained, sizes):
    """Dropout too: random bits do not depend on where they are drawn."""
    step, before, (expected, expected_sums) = trained
    mesh = make_mesh(MeshConfig(*sizes))
    after, sums = step(jax.device_put(before, state_shardings(before, mesh)), place(make_batch(16), mesh))
    for name, value in expected_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)

    def assert_close(path, actual, wanted, old):
        # Relative to the parameter, and the change relative to the largest change of its kind.
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5 * float(jnp.abs(wanted - old).max()) + 1e-7)
        assert jax.tree_util.keystr(path).endswith("query']['bias']") or (wanted != old).any(), path

    jax.tree_util.tree_map_with_path(assert_close, after.params, expected.params, before.params)
