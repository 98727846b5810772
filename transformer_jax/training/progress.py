"""What the loop keeps count of, and how it is told to stop."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from transformer_jax.data.pipeline import Position

TIME_RESERVE = 0.04
"""Share of `max_minutes` kept free for what nobody foresaw."""
FINAL_EVALUATIONS = 8
"""The evaluations at the end, with the configured search, take at most so many times one during training."""
FIRST_EVALUATION_SECONDS = 15.0
"""A guess at one during training, until it has been measured."""


@dataclass
class Progress:
    """What a run remembers besides its state, so that it goes on as if it had never stopped."""

    position: Position = field(default_factory=Position)
    """Of the next batch."""
    best_score: float = -math.inf
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    unlogged: dict[str, float] = field(default_factory=dict)
    """Sums since the last line of the log."""
    minutes: float = 0.0
    """Wall-clock time until the last checkpoint, over all processes that went on with the run."""

    def add(self, sums: dict[str, Any]) -> float:
        """Count one step in; returns its weight, the number of tokens that it predicted."""
        for name, value in sums.items():
            self.unlogged[name] = self.unlogged.get(name, 0.0) + float(value)
        return float(sums["weight"])


class Clock:
    """How long a run has taken, and whether it may go on: `max_minutes` are of each process that goes on with it."""

    def __init__(self, started: float, max_minutes: float) -> None:
        """Begin to count.

        Args:
            started: what `time.monotonic()` was then.
            max_minutes: wall-clock time that this process has, evaluations at the end included; 0: all it needs.
        """
        self._started, self._limit = started, max_minutes * 60
        self.minutes_before = 0.0
        """Of the processes before."""
        self.evaluation_seconds = FIRST_EVALUATION_SECONDS
        """What an evaluation during training takes."""

    def seconds(self) -> float:
        """Of this process."""
        return time.monotonic() - self._started

    def minutes(self) -> float:
        """Of the whole run."""
        return self.minutes_before + self.seconds() / 60

    def has(self, seconds: float) -> bool:
        """Whether so many are left."""
        return not self._limit or self.seconds() + seconds < self._limit * (1 - TIME_RESERVE)

    def is_late(self) -> bool:
        """Whether only the evaluations at the end fit in, which get half of the time at most."""
        return not self.has(min(FINAL_EVALUATIONS * self.evaluation_seconds, self._limit / 2))


@dataclass
class Rate:
    """Tokens per second of training, evaluations apart."""

    tokens: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def take(self) -> float:
        """The rate since the last call."""
        rate = self.tokens / (time.monotonic() - self.started)
        self.tokens, self.started = 0.0, time.monotonic()
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count."""
        paused = time.monotonic()
        yield
        self.started += time.monotonic() - paused


class Interrupted(BaseException):
    """A signal came while nothing was unsaved, so that the run ends here."""


class Stop:
    """Ctrl-C or SIGTERM, as far as it has come."""

    signal: int | None = None
    """Its number."""
    is_common = False
    """Whether all processes know it, at the same step."""
    saved_step = 0
    """Of the last checkpoint."""

    def __init__(self) -> None:
        """Nothing is unsaved yet."""
        self._is_unsaved = False

    def unsaved(self) -> None:
        """From now on a signal is only noted, for the loop to save.

        Raises:
            Interrupted: if one was noted before.
        """
        self._raise_if_noted()
        self._is_unsaved = True

    def saved(self, step: int) -> None:
        """From now on a signal ends the run at once.

        Raises:
            Interrupted: if one was noted before.
        """
        self.saved_step = step
        self._is_unsaved = False
        self._raise_if_noted()

    def agree(self, number: int) -> None:
        """Note a signal that some process was sent."""
        self.signal, self.is_common = number, True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What `signal.signal` takes. Only a second Ctrl-C ends a run that has something to save."""
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        if not _is_swallowed(frame):
            self._raise_if_noted()
        print("Stopping after this step; Ctrl-C ends at once, without saving.", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, a signal is only noted, as what is called would not survive an exception at any place.

        Raises:
            Interrupted: at the end, if one was noted and nothing is unsaved.
        """
        before, self._is_unsaved = self._is_unsaved, True
        try:
            yield
        finally:
            self._is_unsaved = before
        self._raise_if_noted()

    def explains(self, error: BaseException) -> bool:
        """Whether an error is due to a signal that ended the run, whatever became of `Interrupted` on its way."""
        return isinstance(error, Interrupted) or (self.signal is not None and not self._is_unsaved)

    def _raise_if_noted(self) -> None:
        if self.signal is not None and not self._is_unsaved:
            raise Interrupted


def _is_swallowed(frame: FrameType | None) -> bool:
    """Whether Python would only print an exception that is raised here, as in finalisers and callbacks of gc."""
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_xla_gc_callback"):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within, Ctrl-C and SIGTERM go to the yielded object, except in threads, which may not handle signals."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
