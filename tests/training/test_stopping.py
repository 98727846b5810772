"""When a run stops early, by a signal or the clock, on one process or several."""

import math
import os
import signal

import jax
import numpy as np
import pytest

from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.system import distributed
from transformer_jax.training.stopping import (
    BATCH_STATS,
    FLAGS,
    Clock,
    Interrupted,
    StopFlags,
    StopSignal,
    host_values,
    mean_over_devices,
    stop_on_signals,
)


@pytest.fixture
def two(monkeypatch):
    """As if there were two processes."""
    monkeypatch.setattr(distributed, "process_count", lambda: 2)


def make_flags(max_minutes=0.0):
    stop, mesh = StopSignal(), make_mesh(MeshConfig(data=2, fsdp=-1))
    stop.mark_unsaved()
    return StopFlags(stop, Clock(0.0, max_minutes), mesh), stop


def test_one_process_passes_no_flags_and_stops_at_once():
    flags, stop = make_flags()
    assert flags.for_step({"fill": 1.0}) is None
    assert mean_over_devices(None) == {}
    assert not flags.must_stop()
    stop.handle(signal.SIGTERM, None)
    assert flags.must_stop()
    assert make_flags(max_minutes=1.0)[0].must_stop(), "the clock has run for longer since it was 0"


def test_host_values_are_averaged_over_devices(two):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    means = jax.jit(mean_over_devices)(host_values({"fill": 0.5, "flops": 3.0, "SIGINT": 1.0, "other": 9.0}, mesh))
    assert set(means) == {*BATCH_STATS, *FLAGS}
    assert {name: float(value) for name, value in means.items() if value} == {"fill": 0.5, "flops": 3.0, "SIGINT": 1.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_stop_after_reading_the_flag_of_a_signal(two, number):
    """A step after the one that the flag went into."""
    flags, stop = make_flags()
    stop.handle(number, None)
    assert not flags.must_stop(), "the others do not know it yet"
    sums = {"loss": np.float32(2.0), **jax.jit(mean_over_devices)(flags.for_step({"fill": 0.25}))}
    assert {name: float(value) for name, value in flags.read(sums).items()} == {"loss": 2.0, "fill": 0.25, "flops": 0}
    assert flags.must_stop()
    other, other_stop = make_flags()
    other.read(sums)
    assert other.must_stop()
    assert [(each.number, each.is_common) for each in (stop, other_stop)] == [(number, True)] * 2


def test_all_stop_when_one_is_late(two):
    flags, stop = make_flags(max_minutes=1.0)
    assert not flags.must_stop()
    flags.read(jax.jit(mean_over_devices)(flags.for_step({})))
    assert flags.must_stop()
    assert stop.number is None


def test_the_clock_keeps_time_for_the_end(monkeypatch):
    now = 0.0
    monkeypatch.setattr("transformer_jax.training.stopping.time.monotonic", lambda: now)
    clock = Clock(0.0, 100.0)
    clock.evaluation_seconds = 60.0
    clock.minutes_before = 5.0
    for now, late in ((0.0, False), (87 * 60.0, False), (89 * 60.0, True)):  # 96 minutes, less eight evaluations
        assert clock.is_late() is late
        assert clock.minutes() == pytest.approx(5 + now / 60)
    clock.evaluation_seconds = 180.0
    for minutes, late in ((85, False), (87, True)):
        now = 60.0 * minutes
        assert clock.is_late() is late, "three evaluations fit into a tenth of the time"
    clock.evaluation_seconds = 3600.0
    for minutes, late in ((45, False), (47, True)):
        now = 60.0 * minutes
        assert clock.is_late() is late, "the end takes half of the time at most"
    assert Clock(0.0, 0.0).has(1e9), "no limit"


def test_a_short_limit_is_used(monkeypatch):
    """As soon as the speed of training is known, or better an evaluation was timed, little is kept in reserve."""
    now = 0.0
    monkeypatch.setattr("transformer_jax.training.stopping.time.monotonic", lambda: now)
    clock = Clock(0.0, 1.0)

    def last_second():
        nonlocal now
        for second in range(60):
            now = float(second)
            if clock.is_late():
                return second
        return 60

    assert last_second() >= 27
    clock.expect_evaluation(math.nan)
    assert last_second() >= 27
    clock.expect_evaluation(1.0)
    assert last_second() >= 39
    clock.measured_evaluation(1.0)
    assert last_second() >= 50
    clock.expect_evaluation(100.0)
    assert last_second() >= 50, "what was measured counts more than an estimate"


@pytest.fixture
def handlers():
    """A shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_until_all_is_saved(number, handlers, capsys):
    with stop_on_signals() as stop:
        stop.mark_unsaved()
        assert stop.number is None
        os.kill(os.getpid(), number)
        assert stop.number == number
        assert "Stopping after this step" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)  # as impatient schedulers do
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            stop.mark_saved(3)
        assert stop.saved_step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_at_once_what_has_nothing_to_save(number, handlers):
    with stop_on_signals() as stop:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            stop.mark_unsaved()


def test_a_signal_is_deferred_to_the_end_of_what_would_not_survive_it(handlers):
    with stop_on_signals() as stop:
        reached = []

        def survives():
            with stop.deferred(), stop.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append(True)

        with pytest.raises(Interrupted):
            survives()
        assert reached
    with stop_on_signals() as stop:
        stop.mark_unsaved()
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.mark_saved(2)


def test_where_exceptions_are_swallowed_a_signal_is_noted(handlers):
    """pytest would tell of one that is raised there."""

    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with stop_on_signals() as stop:
        Finalised()
        assert stop.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            stop.mark_unsaved()


def test_what_an_interruption_becomes_on_its_way_is_explained_by_it():
    stop = StopSignal()
    assert stop.explains(Interrupted())
    assert not stop.explains(ValueError())
    stop.mark_unsaved()
    stop.set_common(signal.SIGTERM)
    assert not stop.explains(ValueError()), "something is lost"
    with pytest.raises(Interrupted):
        stop.mark_saved(1)
    assert stop.explains(ValueError())
