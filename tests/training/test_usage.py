import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.data.packing import collate_pairs, collate_texts
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.model_config import training_flops
from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.tasks.classification.task import ClassificationTask
from transformer_jax.tasks.seq2seq_task import Seq2SeqTask
from transformer_jax.training import usage as module
from transformer_jax.training.usage import CHIP_FLOPS, batch_stats, chip_flops, describe, program_memory, usage

MODEL = ModelConfig(d_model=16, num_heads=2, d_ff=24, source_vocab_size=31, target_vocab_size=31)
PEAK = 1e15


class Chip:
    def __init__(self, peak):
        self.peak = peak

    def memory_stats(self):
        return {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}


LAYERS, WIDTH, ROWS = 5, 32, 16
MATRIX = WIDTH * WIDTH * 4


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig())


@pytest.fixture
def known_chips(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Chip(3 * 10**9), Chip(5 * 10**9)])
    monkeypatch.setattr(module, "chip_flops", {"cpu": PEAK}.get)


def test_only_real_tokens_count():
    full = collate_pairs([[(np.full(8, 5), np.full(8, 6))]], 8, 1)
    half = collate_pairs([[(np.full(4, 5), np.full(4, 6))]], 8, 1)
    assert batch_stats(full, 8.0) == {"steps": 1.0, "fill": 1.0, "flops": 8.0}
    assert batch_stats(half, 8.0)["flops"] == 4.0


def test_a_step_counts_all_slots_of_its_batch():
    task = types.SimpleNamespace(model_config=MODEL)
    assert Seq2SeqTask.flops(task, collate_pairs([], 6, 4)) == training_flops(MODEL, 4, 6, 6)
    classifier = dataclasses.replace(MODEL, target_vocab_size=0, num_classes=3)
    task = types.SimpleNamespace(model_config=classifier)
    assert ClassificationTask.flops(task, collate_texts([], 6, 4)) == training_flops(classifier, 4, 6, 0)


def test_chips_at_their_limit_have_an_mfu_of_one(known_chips, mesh):
    """Eight took a second for 1,000 tokens and all the operations that they could do in it."""
    sums = {"weight": 1000.0, "flops": 8 * PEAK}
    found = usage(sums, 1000.0, mesh)
    assert found == {"tokens_per_second_per_device": 125.0, "mfu": pytest.approx(1.0), "memory_gb": 5.0}
    assert usage(sums, 250.0, mesh)["mfu"] == pytest.approx(0.25)


@pytest.mark.parametrize("sums", [{"weight": 10.0, "flops": 0.0}, {"weight": 10.0}, {"weight": 0.0, "flops": 9.0}])
def test_what_is_not_known_is_left_out(known_chips, mesh, sums):
    assert "mfu" not in usage(sums, 10.0, mesh)


def test_on_cpus_memory_is_that_of_the_process(mesh):
    found = usage({"weight": 9.0, "flops": 9.0}, 80.0, mesh)
    assert found["tokens_per_second_per_device"] == 10.0
    assert 0.05 < found["memory_gb"] < 100
    assert "mfu" not in found


@pytest.mark.parametrize(("own", "share"), [([0, 1, 2, 3], 1 / 2), (list(range(8)), 1)])
def test_rows_that_two_processes_hold_count_once(known_chips, monkeypatch, mesh, own, share):
    monkeypatch.setattr(module, "own_rows", lambda mesh, num_rows: own)
    assert usage({"weight": 1000.0, "flops": 8 * PEAK * share}, 1000.0, mesh)["mfu"] == pytest.approx(1.0)


def test_a_chip_is_known_by_how_its_name_begins():
    assert chip_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert chip_flops("NVIDIA H100 PCIe") == 756e12
    assert chip_flops("TPU v5 lite") == 197e12
    assert chip_flops("TPU v5") == 459e12
    assert chip_flops("TPU v5e") == 197e12
    assert chip_flops("AMD EPYC") is None


def test_no_chip_hides_behind_a_shorter_name():
    assert {name: chip_flops(name) for name in CHIP_FLOPS} == CHIP_FLOPS


def compiled_gradient(mesh, weights, rows):
    """Of a loss behind some layers in a loop: the gradient lies as the weights do."""
    weights, rows = NamedSharding(mesh, weights), NamedSharding(mesh, rows)

    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, w)[0] ** 2)

    like = (
        jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=weights),
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows),
    )
    return jax.jit(jax.grad(loss), out_shardings=weights).lower(*like).compile()


def test_memory_is_that_of_a_device():
    whole = program_memory(compiled_gradient(make_mesh(MeshConfig(data=8)), P(), P("data")))
    parts = program_memory(compiled_gradient(make_mesh(MeshConfig(fsdp=8, data=1)), P(None, "fsdp"), P("fsdp")))
    rows = ROWS * WIDTH * 4 // 8
    assert (whole.arguments, whole.outputs) == (LAYERS * MATRIX + rows, LAYERS * MATRIX)
    assert (parts.arguments, parts.outputs) == (LAYERS * MATRIX // 8 + rows, LAYERS * MATRIX // 8)
    assert whole.total == whole.arguments + whole.outputs + whole.temporaries > whole.arguments


def test_what_is_written_over_the_arguments_is_no_output():
    like = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    assert program_memory(jax.jit(lambda x: x + 1, donate_argnums=0).lower(like).compile())[:2] == (MATRIX, 0)


class Unreported:
    def memory_analysis(self):
        return None


def test_the_compiled_step_is_described_by_its_memory():
    [line] = describe(compiled_gradient(make_mesh(MeshConfig(data=8)), P(), P("data")))
    assert line.startswith("A step takes 0.")
    assert [name in line for name in ("arguments", "outputs", "temporaries")] == [True] * 3
    # Not every backend reports its memory.
    assert describe(Unreported()) == []
