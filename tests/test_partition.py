"""Sharding rules, and the collectives of the step compiled for eight devices."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import collectives
from transformer_jax import sharding as partition
from transformer_jax.nn import Classifier, ModelConfig, Seq2Seq, abstract_params, split
from transformer_jax.nn.losses import chunked_cross_entropy
from transformer_jax.sharding import (
    ROWS,
    RULES,
    MeshConfig,
    axis_size,
    gathered,
    lookup,
    make_mesh,
    on_mesh,
    partition_spec,
    platform,
    state_shardings,
)
from transformer_jax.training.step import init_state, train_step

TINY = ModelConfig(
    d_model=16,
    num_heads=4,
    d_ff=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=48,
    target_vocab_size=48,
)
BASE = ModelConfig(
    d_model=512,
    num_heads=8,
    d_ff=2048,
    num_encoder_layers=6,
    num_decoder_layers=6,
    scan_layers=True,
    source_vocab_size=37_000,
    target_vocab_size=37_000,
    positions="learned",
    output_bias=True,
    num_classes=4,
)


def paths(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


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
    """Every matrix matches exactly one rule, other parameters at most one, and every rule is used."""
    config = replace(TINY, output_bias=True, positions="learned")
    _, params = abstract_params(Seq2Seq, config)
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


class Step:
    """A training step compiled for a mesh, with a loss in several chunks."""

    def __init__(self, config, sizes, *, rows=16, length=12, chunk=8, ema=False, **options):
        mesh = make_mesh(MeshConfig(*sizes))
        self.graphdef, _ = abstract_params(Seq2Seq, config)
        optimizer = optax.adam(1e-3)

        def loss_fn(params, batch, key):
            model = nnx.merge(self.graphdef, params)
            hidden = model.hidden(batch["source"], batch["target"], dropout_key=key)
            weights = (batch["target"] != 0).astype(jnp.float32)
            bias = None if model.output_bias is None else model.output_bias[...]
            loss = chunked_cross_entropy(hidden, model.output_table, batch["target"], weights, 0.1, chunk, bias)
            return {"loss": loss, "weight": weights.sum()}

        self.state = jax.eval_shape(lambda: init_state(split(Seq2Seq(config, rngs=nnx.Rngs(0)))[1], optimizer, ema=ema))
        shardings = state_shardings(self.state, mesh)
        like = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), self.state, shardings)
        tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=NamedSharding(mesh, ROWS))
        step = partial(on_mesh(train_step, mesh), loss_fn=loss_fn, optimizer=optimizer, seed=0, **options)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
        self.compiled = jitted.lower(like, {"source": tokens, "target": tokens}).compile()
        self.batch_bytes = 2 * 4 * rows * length // (sizes[0] * sizes[1])
        self.collectives = collectives(self.compiled.as_text())

    def sizes(self):
        """Bytes of each parameter."""
        return [4 * leaf.size for leaf in jax.tree.leaves(self.state.params)]


def test_data_parallel_training_sums_gradients_and_nothing_else():
    step = Step(TINY, (8, 1, 1))
    assert {found.kind for found in step.collectives} == {"all-reduce"}
    assert {found.times for found in step.collectives} == {1}, "none inside the loop of the loss"
    # The table has three gradients, which XLA sums first on accelerators.
    table = 4 * TINY.target_vocab_size * TINY.d_model
    sent = sum(found.size for found in step.collectives)
    assert sum(step.sizes()) <= sent <= sum(step.sizes()) + 2 * table + 64


def test_fully_sharded_training_gathers_parameters_and_sums_gradients_and_nothing_else():
    step = Step(TINY, (1, 8, 1))
    # XLA:CPU uses all-reduce where other backends use reduce-scatter.
    assert {found.kind for found in step.collectives} <= {"all-gather", "all-reduce", "reduce-scatter"}
    assert {found.times for found in step.collectives} == {1}, "none inside the loop of the loss"
    matrices = [4 * leaf.size for path, leaf in paths(step.state.params).items() if "fsdp" in partition_spec(path)]
    gathered = sorted(found.size for found in step.collectives if found.kind == "all-gather")
    assert gathered == sorted(matrices)


def test_tensor_parallel_training_sums_activations_and_keeps_logits_where_they_are():
    rows, length, chunk = 16, 12, 8
    step = Step(TINY, (1, 4, 2), rows=rows, length=length, chunk=chunk)
    assert {found.kind for found in step.collectives} <= {"all-gather", "all-reduce", "reduce-scatter"}
    in_loop = [found for found in step.collectives if found.times > 1]
    assert in_loop, "the sums over the vocabulary"
    assert {(found.kind, found.devices) for found in in_loop} == {("all-reduce", 2)}
    # Per chunk and device: the gradient of the output layer's input, never its logits.
    assert max(found.size for found in in_loop) <= 4 * chunk * TINY.d_model


def test_gradients_of_parts_of_a_batch_need_no_other_collectives():
    step = Step(TINY, (2, 4, 1), accumulate_steps=2)
    assert {found.kind for found in step.collectives} <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.parametrize("model", [Seq2Seq, Classifier])
def test_parameters_and_optimiser_take_an_eighth_of_each_device(model):
    _, params = abstract_params(model, BASE)
    state = jax.eval_shape(partial(init_state, optimizer=optax.adam(1e-3), ema=True), params)
    shardings = state_shardings(state, make_mesh(MeshConfig(1, 8, 1)))
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    share = sum(math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in leaves)
    assert share <= 1.05 / 8 * sum(leaf.size for leaf in jax.tree.leaves(state))


def test_the_compiled_step_takes_an_eighth_of_each_device():
    step = Step(BASE, (1, 8, 1), rows=8, length=8, chunk=64, ema=True)
    found = step.compiled.memory_analysis()
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state))
    assert 0.999 / 8 * state <= found.argument_size_in_bytes - step.batch_bytes <= 1.05 / 8 * state
    # Donated: outputs reuse the memory of inputs.
    assert found.alias_size_in_bytes == found.argument_size_in_bytes - step.batch_bytes
    assert found.output_size_in_bytes - found.alias_size_in_bytes < 4096


def test_a_mesh_is_known_where_it_is_asked_for():
    mesh = make_mesh(MeshConfig(2, 2, 2))

    def sizes():
        return axis_size("data", "fsdp"), axis_size("tensor"), platform()

    assert sizes() == (1, 1, "cpu")
    assert on_mesh(sizes, mesh)() == (4, 2, "cpu")
    assert sizes() == (1, 1, "cpu")


def test_without_a_mesh_parameters_stay_as_they_are():
    params = {"query": {"kernel": jnp.ones((4, 4))}}
    assert gathered(params, jnp.bfloat16) is params


def test_parameters_are_gathered_in_the_type_of_the_computation():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    params = {
        "table": shape,
        "norm": {"scale": jax.ShapeDtypeStruct((8,), jnp.float32)},
        "layers": {0: {"wide": {"kernel": shape}}},
    }
    dtypes = {}

    def use(params):
        found = gathered(params, jnp.bfloat16)
        dtypes.update({path: leaf.dtype for path, leaf in paths(found).items()})
        return sum(leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(found))

    gradients = jax.jit(on_mesh(jax.grad(use), mesh)).eval_shape(params)
    assert dtypes == {"table": jnp.bfloat16, "norm.scale": jnp.float32, "layers.0.wide.kernel": jnp.float32}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 2, 4)])
def test_lookups_on_a_mesh_give_the_gradients_of_plain_ones(sizes):
    mesh = make_mesh(MeshConfig(*sizes))
    table = jax.random.normal(jax.random.key(0), (8, 4))
    tokens = jax.random.randint(jax.random.key(1), (16, 3), 0, 8)
    factors = jax.random.normal(jax.random.key(2), (16, 3, 4))

    def value(table):
        return jnp.sum(factors * lookup(table, tokens) ** 2)

    expected = jax.value_and_grad(lambda table: jnp.sum(factors * table[tokens] ** 2))(table)
    spread = jax.device_put(table, NamedSharding(mesh, partition_spec("table")))
    for actual in (jax.value_and_grad(value)(table), jax.jit(on_mesh(jax.value_and_grad(value), mesh))(spread)):
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected)
