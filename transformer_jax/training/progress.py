"""What the loop keeps count of, and how it is told to stop."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transformer_jax.data.batching import Position


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

    def handle(self, number: int, frame: Any) -> None:
        """What `signal.signal` takes. Only a second Ctrl-C ends a run that has something to save."""
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        self._raise_if_noted()
        print("Stopping after this step; Ctrl-C ends at once, without saving.", file=sys.stderr, flush=True)

    def _raise_if_noted(self) -> None:
        if self.signal is not None and not self._is_unsaved:
            raise Interrupted


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
