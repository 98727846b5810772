"""When a run ends early, and how processes tell each other."""

import signal

import jax
import numpy as np
import pytest

from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.system import distributed
from transformer_jax.training.ending import COUNTS, FLAGS, Ending, hear, tell
from transformer_jax.training.progress import Clock, Stop


@pytest.fixture
def two(monkeypatch):
    """As if there were two processes."""
    monkeypatch.setattr(distributed, "process_count", lambda: 2)


def make_ending(max_minutes=0.0):
    stop, mesh = Stop(), make_mesh(MeshConfig(data=2, fsdp=-1))
    stop.unsaved()
    return Ending(stop, Clock(0.0, max_minutes), mesh), stop


def test_one_process_tells_nothing_and_ends_at_once():
    ending, stop = make_ending()
    assert ending.told({"fill": 1.0}) is None
    assert hear(None) == {}
    assert not ending.is_due(1)
    stop.handle(signal.SIGTERM, None)
    assert ending.is_due(1)
    assert make_ending(max_minutes=1.0)[0].is_due(1), "the clock has run for longer since it was 0"


def test_what_is_told_comes_back_as_the_mean_over_devices(two):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    heard = jax.jit(hear)(tell({"fill": 0.5, "flops": 3.0, "SIGINT": 1.0, "other": 9.0}, mesh))
    assert set(heard) == {*COUNTS, *FLAGS}
    assert {name: float(value) for name, value in heard.items() if value} == {"fill": 0.5, "flops": 3.0, "SIGINT": 1.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_end_when_they_hear_of_a_signal(two, number):
    """A step after the one with which it is told."""
    ending, stop = make_ending()
    stop.handle(number, None)
    assert not ending.is_due(7), "the others do not know it yet"
    sums = {"loss": np.float32(2.0), **jax.jit(hear)(ending.told({"fill": 0.25}))}
    assert {name: float(value) for name, value in ending.heard(sums).items()} == {"loss": 2.0, "fill": 0.25, "flops": 0}
    assert ending.is_due(8)
    other, other_stop = make_ending()
    other.heard(sums)
    assert other.is_due(8)
    assert [(each.signal, each.is_common) for each in (stop, other_stop)] == [(number, True)] * 2


def test_all_end_when_one_is_late(two):
    ending, stop = make_ending(max_minutes=1.0)
    assert not ending.is_due(1)
    ending.heard(jax.jit(hear)(ending.told({})))
    assert ending.is_due(2)
    assert stop.signal is None


def test_the_clock_keeps_time_for_the_end(monkeypatch):
    now = 0.0
    monkeypatch.setattr("transformer_jax.training.progress.time.monotonic", lambda: now)
    clock = Clock(0.0, 100.0)
    clock.evaluation_seconds = 60.0
    clock.minutes_before = 5.0
    for now, late in ((0.0, False), (87 * 60.0, False), (89 * 60.0, True)):  # 96 minutes, less eight evaluations
        assert clock.is_late() is late
        assert clock.minutes() == pytest.approx(5 + now / 60)
    clock.evaluation_seconds = 3600.0
    now = 45 * 60.0
    assert not clock.is_late(), "the end takes half of the time at most"
    now = 47 * 60.0
    assert clock.is_late()
    assert Clock(0.0, 0.0).has(1e9), "no limit"
