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


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[int]]:
    """Within, the first Ctrl-C or SIGTERM is only added to the yielded list; the second ends the process."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        caught.append(number)
        print("Stopping after this step; once more ends at once, without saving.", file=sys.stderr, flush=True)
        for each, handler in previous.items():
            signal.signal(each, handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
