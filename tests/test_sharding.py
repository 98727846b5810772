from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from transformer_jax import sharding as partition
from transformer_jax.nn import ModelConfig, Seq2Seq, split, stack_layers, unstack_layers
from transformer_jax.sharding import MeshConfig, check_heads, make_mesh, shard_batch, state_shardings
from transformer_jax.system import UserError

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


def test_heads_that_do_not_divide():
    mesh = make_mesh(MeshConfig(1, 2, 4))
    check_heads(TINY.num_heads, mesh)
    with pytest.raises(UserError, match=r"config\.model\.num_heads is 6, .* config\.mesh\.tensor=4"):
        check_heads(6, mesh)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_rows_are_spread(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    batch = make_batch()
    placed = shard_batch(batch, mesh)
    assert type(placed) is Pair
    np.testing.assert_array_equal(placed.source, batch.source)
    assert {shard.data.shape for shard in placed.source.addressable_shards} == {(8 // (sizes[0] * sizes[1]), 7)}
    # As with several processes.
    piecewise = jax.make_array_from_process_local_data(NamedSharding(mesh, partition.ROWS), batch.source)
    assert piecewise.sharding == placed.source.sharding
    np.testing.assert_array_equal(piecewise, placed.source)


def test_rows_that_do_not_divide():
    with pytest.raises(UserError, match=r"config\.data\.tokens_per_batch makes batches of 6 rows"):
        shard_batch(make_batch(6), make_mesh(MeshConfig()))


@pytest.fixture(scope="module")
def loss_and_gradients(model):
    """A jitted function to loss, logits and gradients, and its results on one device."""
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
    (_, actual), grads = function(spread, shard_batch(make_batch(), mesh))
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

    (_, actual), grads = jax.jit(jax.value_and_grad(loss_and_logits, has_aux=True))(
        spread, shard_batch(make_batch(), mesh)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), unstack_layers(grads), expected_grads)
