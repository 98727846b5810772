"""When a run stops before its last step: a signal of `SIGNALS` or `max_minutes`, on all processes at the same step.

Each process passes its stop flags into the training step, which averages them over all devices; the loop reads the
means a step late, together with the metrics.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from transformer_jax.nn.losses import Sums
from transformer_jax.system import distributed
from transformer_jax.system.runtime import show_error

SIGNALS = tuple(filter(None, (signal.SIGTERM, getattr(signal, "SIGHUP", None), signal.SIGINT)))
"""Ctrl-C, what schedulers send, and what a terminal sends that is closed."""
TIME_RESERVE = 0.04
"""Safety margin, as a fraction of `max_minutes`."""
FINAL_EVALUATIONS = 8
"""Duration of the final evaluations, which use the configured search, in units of one evaluation during training."""
FEWEST_FINAL_EVALUATIONS = 3
"""The same for the last parameters alone."""
FIRST_EVALUATION_SECONDS = 15.0
"""Estimate for an evaluation during training, until the speed of training is known."""
COMPILATION_SECONDS = 5.0
"""Estimate for the compilation of the first evaluation."""


class Clock:
    """Elapsed time of a run, and how much of `max_minutes`, which counts per process start, is left."""

    def __init__(self, started: float, max_minutes: float) -> None:
        """Start the clock.

        Args:
            started: `time.monotonic()` at program start.
            max_minutes: wall-clock limit of this process, final evaluations included; 0 for none.
        """
        self._started, self._limit = started, max_minutes * 60
        self.minutes_before = 0.0
        """Minutes spent by earlier processes on this run."""
        self.evaluation_seconds = FIRST_EVALUATION_SECONDS
        """Duration of the last evaluation during training, or an estimate."""
        self._has_measured = False

    def seconds(self) -> float:
        """Seconds since this process started."""
        return time.monotonic() - self._started

    def minutes(self) -> float:
        """Minutes spent on the whole run."""
        return self.minutes_before + self.seconds() / 60

    def has(self, seconds: float) -> bool:
        """Whether at least `seconds` are left."""
        return not self._limit or self.seconds() + seconds < self._limit * (1 - TIME_RESERVE)

    def expect_evaluation(self, seconds: float) -> None:
        """Set the estimate for an evaluation, compilation excluded, unless one has been measured."""
        if not self._has_measured and math.isfinite(seconds):
            self.evaluation_seconds = COMPILATION_SECONDS + seconds

    def measured_evaluation(self, seconds: float) -> None:
        """Set the duration of the last evaluation."""
        self.evaluation_seconds, self._has_measured = seconds, True

    def is_late(self) -> bool:
        """Whether the time left is only enough for the final evaluations.

        They get a tenth of the limit, more if one would not fit otherwise, and at most half.
        """
        all_of_them, fewest = (n * self.evaluation_seconds for n in (FINAL_EVALUATIONS, FEWEST_FINAL_EVALUATIONS))
        return not self.has(min(all_of_them, max(fewest, self._limit / 10), self._limit / 2))


class Interrupted(BaseException):
    """Raised for a signal when there is nothing to save."""


class StopSignal:
    """A signal of `SIGNALS`, deferred while the run has unsaved updates."""

    number: int | None = None
    """The signal received, if any."""
    is_common = False
    """Whether all processes act on it at the same step."""
    saved_step = 0
    """Step of the last checkpoint."""

    def __init__(self) -> None:
        """Nothing received, nothing unsaved."""
        self._is_unsaved = False

    def mark_unsaved(self) -> None:
        """From now on a signal is only noted, and the loop saves before it stops.

        Raises:
            Interrupted: if one was noted before.
        """
        self._raise_if_noted()
        self._is_unsaved = True

    def mark_saved(self, step: int) -> None:
        """From now on a signal ends the run at once.

        Raises:
            Interrupted: if one was noted before.
        """
        self.saved_step = step
        self._is_unsaved = False
        self._raise_if_noted()

    def set_common(self, number: int) -> None:
        """Note a signal that some process received and all know of."""
        self.number, self.is_common = number, True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler for `signal.signal`. With unsaved updates, only a second Ctrl-C ends the run at once."""
        if self.number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.number = number
        if not _is_swallowed(frame):
            self._raise_if_noted()
        show_error("Stopping after this step; Ctrl-C ends at once, without saving.")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A context that only notes signals, for code that an exception at an arbitrary place would break.

        Raises:
            Interrupted: on exit, if a signal was noted and nothing is unsaved.
        """
        before, self._is_unsaved = self._is_unsaved, True
        try:
            yield
        finally:
            self._is_unsaved = before
        self._raise_if_noted()

    def explains(self, error: BaseException) -> bool:
        """Whether `error` comes from a signal that ended the run, even if libraries turned it into another type."""
        return isinstance(error, Interrupted) or (self.number is not None and not self._is_unsaved)

    def _raise_if_noted(self) -> None:
        if self.number is not None and not self._is_unsaved:
            raise Interrupted


def _is_swallowed(frame: FrameType | None) -> bool:
    """Whether Python would only print an exception raised here, as it does in finalisers and gc callbacks."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_xla_gc_callback"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopSignal]:
    """A context in which the yielded object handles `SIGNALS`; outside the main thread it changes nothing.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop.handle) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


BATCH_STATS = ("fill", "flops")
"""Statistics of a process's batch that are averaged over processes; see `usage.batch_stats`."""
FLAGS = ("is_late", *(number.name for number in SIGNALS))
"""Stop flags: the process is out of time, or received a signal."""

HostValues = Float[Array, "devices values"] | None
"""On each device the values of its process; None with a single process."""


def host_values(values: Mapping[str, float], mesh: Mesh) -> HostValues:
    """This process's `BATCH_STATS` and `FLAGS` as an argument of the training step.

    Args:
        values: by name; missing ones are 0, others are ignored.
        mesh: all devices of the run.
    """
    if distributed.process_count() == 1:
        return None
    row = np.array([values.get(name, 0.0) for name in BATCH_STATS + FLAGS], np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_process_local_data(sharding, np.tile(row, (len(mesh.local_devices), 1)))


def mean_over_devices(values: HostValues) -> Sums:
    """Within the training step: the mean of each value over all devices, by name."""
    return {} if values is None else dict(zip(BATCH_STATS + FLAGS, values.mean(axis=0), strict=True))


class StopFlags:
    """Whether the run must stop, agreed on by all processes."""

    def __init__(self, stop: StopSignal, clock: Clock, mesh: Mesh) -> None:
        """Watch `stop` and `clock` of this process; `mesh` holds all devices of the run."""
        self._stop, self._clock, self._mesh = stop, clock, mesh
        self._means = dict.fromkeys(FLAGS, 0.0)

    def for_step(self, stats: Mapping[str, float]) -> HostValues:
        """This process's flags and the statistics of its batch, as an argument of the training step."""
        flags = {"is_late": float(self._clock.is_late())}
        if self._stop.number is not None:
            flags[signal.Signals(self._stop.number).name] = 1.0
        return host_values({**stats, **flags}, self._mesh)

    def read(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Note the flags among the results of a step; returns the other results."""
        self._means = {name: float(sums.get(name, 0.0)) for name in FLAGS}
        return {name: value for name, value in sums.items() if name not in FLAGS}

    def must_stop(self) -> bool:
        """Whether the run stops after the current step; the same on all processes."""
        if distributed.process_count() == 1:
            return self._stop.number is not None or self._clock.is_late()
        for number in SIGNALS:
            if self._means[number.name]:
                self._stop.set_common(number)
        return any(self._means.values())
