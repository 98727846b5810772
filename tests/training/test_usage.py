import jax
import numpy as np
import pytest

from transformer_jax.data.collate import collate_pairs
from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.training import usage as module
from transformer_jax.training.flops import training_flops
from transformer_jax.training.usage import counts_of, usage

MODEL = ModelConfig(d_model=16, num_heads=2, d_ff=24, source_vocab_size=31, target_vocab_size=31)
PEAK = 1e15


class Chip:
    def __init__(self, peak):
        self.peak = peak

    def memory_stats(self):
        return {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}


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
    assert counts_of(full, MODEL) == {"steps": 1.0, "fill": 1.0, "flops": training_flops(MODEL, 1, 8, 8)}
    assert counts_of(half, MODEL)["flops"] == training_flops(MODEL, 1, 8, 8) / 2


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
