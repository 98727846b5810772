"""Sends the log of a run to trackers, each line at most once, however often the run is interrupted.

A tracker is a view of the log: it gets the lines of `log.jsonl` and `timing.jsonl` in order. What it missed, because it
was added later or its server was down, it gets when the run resumes. No tracker ends or delays a run: those that may
wait for a network have their own thread, and one that fails is dropped with a sentence.
"""

import hashlib
import importlib.util
import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

from transformer_jax.system.files import read_json
from transformer_jax.training.mirror import Mirror
from transformer_jax.training.trackers import KINDS, START, TRACKERS, Position, Record, TrackedRun, Tracker

TRACKERS_FILE = "trackers.json"
"""In the folder of a run: the id under which trackers know it, and the last line sent to each."""
IMMEDIATE = ("tensorboard",)
"""These write to the folder of the run alone, at once, and rewrite the whole log in each process."""
PATIENCE = 20.0
"""Seconds to wait, at the end of a run, for what a tracker has not taken yet."""


class Trackers:
    """The trackers of a run."""

    def __init__(
        self,
        names: Sequence[str],
        mirror: Mirror,
        history: Sequence[Record],
        *,
        name: str,
        config: Mapping[str, Any],
        first_step: int,
        say: Callable[[str], None],
    ) -> None:
        """Start those that are installed; the others are named in one sentence.

        Args:
            names: keys of `TRACKERS`.
            mirror: the folder of the run, with its `TRACKERS_FILE` if it has one.
            history: what the log has already.
            name: of the run.
            config: of the run.
            first_step: number of updates made before.
            say: shows a line on the terminal; called by any thread.
        """
        names = tuple(dict.fromkeys(names))
        missing = [each for each in names if not _is_installed(TRACKERS[each].package)]
        if missing:
            say(
                f"config.training.trackers names {', '.join(missing)}, which {'are' if missing[1:] else 'is'} not "
                "installed; the run continues without it (pip install 'transformer-jax[trackers]')"
            )
        sent = _Sent(mirror, config, is_new=first_step == 0)
        run = TrackedRun(name, sent.id, config, mirror, first_step, say)
        self._feeds = [
            _Feed(each, partial(TRACKERS[each], run), history, say)
            if each in IMMEDIATE
            else _BackgroundFeed(each, partial(TRACKERS[each], run), history, say, sent)
            for each in names
            if each not in missing
        ]

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Tell all of them a line of the log."""
        record = Record.of(kind, step, values, time.time())
        for feed in self._feeds:
            feed.take(record)

    def close(self) -> None:
        """Close all of them, after waiting for them at most `PATIENCE` seconds."""
        for feed in self._feeds:
            feed.close()
        deadline = time.monotonic() + PATIENCE
        for feed in self._feeds:
            feed.join(deadline)


class _Sent:
    """The content of `TRACKERS_FILE`: a record is noted before it is sent, so that none is sent twice."""

    def __init__(self, mirror: Mirror, config: Mapping[str, Any], *, is_new: bool) -> None:
        """Read it; a damaged one, and that of another run that had no checkpoint yet, are replaced."""
        self._mirror, self._lock = mirror, threading.Lock()
        self._config = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
        self.id, self._positions = secrets.token_hex(4), dict[str, Position]()
        try:
            values = read_json(mirror.local / TRACKERS_FILE)
            sent = {name: (int(last["step"]), KINDS.index(last["kind"])) for name, last in values["sent"].items()}
            if not is_new or values["config"] == self._config:
                self.id, self._positions = str(values["id"]), sent
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass

    def last(self, name: str) -> Position:
        """Position of the last record sent to a tracker."""
        return self._positions.get(name, START)

    def note(self, name: str, record: Record) -> bool:
        """Note that a record is sent to a tracker; returns whether the note was written."""
        with self._lock:
            positions = {**self._positions, name: record.position}
            sent = {each: {"step": step, "kind": KINDS[kind]} for each, (step, kind) in positions.items()}
            content = json.dumps({"id": self.id, "config": self._config, "sent": sent}) + "\n"
            try:
                self._mirror.write(TRACKERS_FILE, content.encode())
            except OSError:
                return False
            self._positions = positions
        return True


class _Feed:
    """Sends the log to a tracker, in order; at its first error the tracker is dropped."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Tracker],
        history: Iterable[Record],
        say: Callable[[str], None],
        sent: _Sent | None = None,
    ) -> None:
        """Prepare to send a tracker, to be made by `make`, what comes after the last record sent to it."""
        self._name, self._make, self._say, self._sent = name, make, say, sent
        self._last = START if sent is None else sent.last(name)
        self._pending = deque(record for record in history if record.position > self._last)
        self._tracker: Tracker | None = None
        self._is_dropped = False

    def take(self, *records: Record) -> None:
        """Send these to the tracker, after what is still pending."""
        if self._is_dropped:
            return
        self._pending.extend(record for record in records if record.position > self._last)
        try:
            if self._tracker is None:
                self._tracker = self._make()
            while self._pending and (self._sent is None or self._sent.note(self._name, self._pending[0])):
                self._tracker.log(self._pending.popleft())
            self._tracker.flush()
        except (Exception, SystemExit) as error:  # of others' packages, in which anything may fail
            self._drop(error)

    def close(self) -> None:
        """Tell the rest, and close the tracker, if it was made."""
        if self._tracker is None:
            return
        self.take()
        try:
            if not self._is_dropped:
                self._tracker.close()
        except (Exception, SystemExit) as error:
            self._drop(error)

    def join(self, deadline: float) -> None:
        """Wait until `close` has done its work, or `time.monotonic()` is this."""

    def _drop(self, error: BaseException) -> None:
        self._is_dropped = True
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        self._say(f"{self._name} is dropped ({reason.rstrip('.')}); the run continues, and log.jsonl has all values")


class _BackgroundFeed(_Feed):
    """Tells a tracker the log in a thread, which waits for the network in place of the run."""

    def __init__(self, *args: Any) -> None:
        """Start the thread; arguments as for `_Feed`."""
        super().__init__(*args)
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def take(self, *records: Record) -> None:
        """Tell the tracker these, without waiting for it."""
        for record in records:
            self._queue.put(record)

    def close(self) -> None:
        """Close the tracker, without waiting for it."""
        self._queue.put(None)

    def join(self, deadline: float) -> None:
        """Wait until the tracker is closed; if it takes too long, say so."""
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            self._say(f"{self._name} did not take the last values within {PATIENCE:.0f} s; log.jsonl has all of them")
            self._say = _silent

    def _work(self) -> None:
        super().take()
        while (record := self._queue.get()) is not None:
            super().take(record)
        super().close()


def _silent(text: str) -> None:
    """Show nothing."""


def _is_installed(package: str) -> bool:
    # A folder of that name, as wandb leaves in the current one, is no package: it has no origin.
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None
