"""Requests of many clients in batches: what waits for a model is answered together."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Full(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """No more requests are taken."""


class Batcher(Generic[Item, Result]):
    """Answers items in batches, in a thread of its own; safe to call from several threads.

    The thread takes all that wait, splits them into groups of equal keys, and answers each group by one call. Before it
    takes them it waits until there are as many as there were the last time, or a full batch, `gather` seconds at most:
    clients that were answered together soon ask again. A client that stays alone waits once at most.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        key: Callable[[Item], Hashable],
        size: Callable[[Item], int],
        max_waiting: int,
        gather: float = 0.005,
        most: int = 512,
        report: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            work: the results of items whose keys are equal, in order.
            key: that of an item.
            size: how much an item counts, such as its texts.
            max_waiting: items that may wait.
            gather: seconds.
            most: the sizes of the items of a batch add up to this at most, unless one alone is larger.
            report: called with the number of items, the sum of their sizes and the seconds of each group.
        """
        self._work, self._key, self._size, self._report = work, key, size, report
        self._max_waiting, self._gather, self._most = max_waiting, gather, most
        self._waiting: dict[Future[Result], Item] = {}  # in the order in which they came
        self._expected = 0
        self._left = self._seen = 0
        """Of the batch, items without a result; the most clients that were seen to wait for one at a time."""
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    def submit(self, item: Item) -> "Future[Result]":
        """Let an item wait; if its future is cancelled meanwhile, its place is free and it is never answered.

        Raises:
            Full: if there is no place.
            Closed: after `close`.
        """
        hash(self._key(item))  # an error is the caller's, not the thread's
        future: Future[Result] = Future()
        with self._changed:
            if self._is_closed:
                raise Closed
            if len(self._waiting) >= self._max_waiting:
                raise Full
            self._waiting[future] = item
            self._changed.notify_all()
        future.add_done_callback(self._leave)
        return future

    def close(self, timeout: float | None = None) -> None:
        """Take no more items, answer those that wait within `timeout` seconds, and cancel the rest."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        for future in list(self._waiting):
            future.cancel()

    def _leave(self, future: "Future[Result]") -> None:
        with self._changed:
            self._waiting.pop(future, None)

    def _run(self) -> None:
        while True:
            batch = self._next()
            if not batch and self._is_closed:
                return
            groups: dict[Hashable, list[tuple[Future[Result], Item]]] = {}
            for future, item in batch:
                groups.setdefault(self._key(item), []).append((future, item))
            for group in groups.values():
                # Whoever has gone while the groups before were answered is dropped here.
                alive = [(future, item) for future, item in group if future.set_running_or_notify_cancel()]
                self._left -= len(group) - len(alive)
                self._answer(alive)
            self._expected = self._seen

    def _next(self) -> list[tuple["Future[Result]", Item]]:
        """The next batch; empty at the end, and if all have gone while it waited for more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            self._changed.wait_for(self._is_ready, self._gather)
            batch: list[tuple[Future[Result], Item]] = []
            room = self._most
            for future, item in self._waiting.items():
                room -= self._size(item)
                if batch and room < 0:
                    break
                batch.append((future, item))
            for future, _ in batch:
                del self._waiting[future]
            self._left, self._seen = len(batch), 0
            return batch

    def _is_ready(self) -> bool:
        """Whether to take a batch at once."""
        if self._is_closed or len(self._waiting) >= self._expected:
            return True
        return sum(map(self._size, self._waiting.values())) >= self._most

    def _answer(self, group: list[tuple["Future[Result]", Item]]) -> None:
        if not group:
            return
        items = [item for _, item in group]
        started = time.perf_counter()
        try:
            results = list(self._work(items))
            if len(results) != len(items):
                raise RuntimeError(f"There are {len(results)} results for {len(items)} items.")
            if self._report is not None:
                self._report(len(items), sum(map(self._size, items)), time.perf_counter() - started)
        except BaseException as error:  # it must reach whoever waits, and the thread must live on
            if len(group) > 1:
                for one in group:  # the others of the group are not to blame
                    self._answer([one])
                return
            self._count(1)
            # Futures of asyncio take no StopIteration, and what is no Exception would end an event loop.
            is_usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            group[0][0].set_exception(error if is_usual else RuntimeError(repr(error)))
            return
        self._count(len(group))
        for (future, _), result in zip(group, results, strict=True):
            future.set_result(result)

    def _count(self, answered: int) -> None:
        """Count who waits, before some are answered: afterwards, those may ask again and would count twice."""
        with self._changed:
            self._seen = max(self._seen, self._left + len(self._waiting))
            self._left -= answered
