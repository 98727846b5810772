"""Batches of token ids from records, resumable at any batch, and a thread that prefetches them (numpy only)."""

import hashlib
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from transformer_jax.data.packing import Example, bucket_rows, pack_rows
from transformer_jax.data.readers import CHUNK, read_records
from transformer_jax.system import UserError

Record = TypeVar("Record")
Batch = TypeVar("Batch")
Item = TypeVar("Item")


BATCHINGS = ("pack", "bucket")
RECENT = 16
"""Number of batches whose records are remembered; more than are prefetched."""
DIGESTED = 1000
"""Maximum number of examples in a digest of batches."""
_MOST_READ_FOR_DIGEST = 200_000  # records, which takes about 5 s; of more, a sample is read
_SAMPLED_FOR_DIGEST = 4096


class Position(NamedTuple):
    """The next batch: all that a checkpoint stores of the data pipeline."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


class Share(NamedTuple):
    """One process's part of the data pipeline. All processes plan the same batches."""

    process: int
    """Index of this process, from 0."""
    processes: int
    """Number of processes."""
    rows: Callable[[int], Sequence[int]]
    """Maps the number of rows of a batch to the rows that this process collates."""
    gather: Callable[[list[int]], list[list[int]]]
    """Collects one list from each process, in order; every process must call it equally often."""
    close: Callable[[], None]
    """Makes pending and future calls of `gather` raise."""


def check_row_fits(batching: str, tokens_per_batch: int, row_length: int, max_length: int) -> None:
    """Refuse batches too small for one row; arguments as of `Batches`.

    Raises:
        UserError: naming the fields.
    """
    longest_row = max(row_length, max_length) if batching == "pack" else max_length
    if tokens_per_batch < longest_row:
        raise UserError(
            f"config.data.tokens_per_batch is {tokens_per_batch}, but a row may take {longest_row} tokens; raise "
            "it, or lower config.data.max_length and config.data.row_length."
        )


ALONE = Share(0, 1, range, lambda own: [own], lambda: None)


class Batches(Generic[Record, Batch]):
    """The batches of a set of records, as a pure function of seed and position.

    An epoch is a permutation of the records, drawn from (seed, epoch) and cut into windows. The examples of a window
    are packed into rows, and the rows are shuffled by (seed, epoch, window) and cut into batches, so that batches are
    statistically alike. A batch has `tokens_per_batch // row_length` rows, followed by the blank rows needed to divide
    it evenly among devices; so its examples do not depend on the number of devices, and there is one shape per row
    length.
    """

    def __init__(
        self,
        records: Sequence[Record],
        encode: Callable[[list[Record]], list[Example]],
        collate: Callable[[list[list[Example]], int, int], Batch],
        *,
        batching: str,
        tokens_per_batch: int,
        row_length: int,
        bucket_lengths: Sequence[int],
        max_length: int,
        row_multiple: int = 1,
        share: Share = ALONE,
        seed: int = 0,
        shuffle: bool = True,
        window_size: int = 65_536,
    ) -> None:
        """Check the options, without reading any record.

        Args:
            records: anything with a length and random access.
            encode: deterministic function from records to examples.
            collate: makes a batch from rows of examples, the row length and the number of rows including blank ones.
                The list of rows may be empty. With "pack" the batch must always have the same shapes and dtypes.
            batching: "pack" (several examples per row) or "bucket" (one per row, rows grouped by length).
            tokens_per_batch: token slots per batch, on each side.
            row_length: token slots per packed row, on each side; raised to `max_length` if smaller.
            bucket_lengths: row lengths for "bucket"; those above `max_length` are replaced by it.
            max_length: maximum tokens on either side of an example; longer examples are skipped and counted.
            row_multiple: blank rows are appended until the number of rows is a multiple of this.
            share: this process's share. It encodes the records of its own rows, and every `share.processes`-th record
                to report its length to the other processes, since planning needs all lengths.
            seed: seed of the order.
            shuffle: False keeps the order of the records, for evaluation.
            window_size: number of records encoded and planned at a time.

        Raises:
            UserError: for an unknown batching, no records, a negative seed, or a batch too small for one row.
        """
        if batching not in BATCHINGS:
            raise UserError(f"config.data.batching is {batching!r}, but must be one of {', '.join(BATCHINGS)}.")
        if not len(records):
            raise UserError("The data set has no records; check the files under config.data.")
        if seed < 0:
            raise UserError(f"config.seed is {seed}, but must not be negative.")
        self._row_length = max(row_length, max_length)
        self._bucket_lengths = sorted({*(n for n in bucket_lengths if n < max_length), max_length})
        check_row_fits(batching, tokens_per_batch, row_length, max_length)
        self._records = records
        self._encode = encode
        self._collate = collate
        self._batching = batching
        self._tokens_per_batch = tokens_per_batch
        self._row_multiple = row_multiple
        self._share = share
        self._max_length = max_length
        self._seed = seed
        self._shuffle = shuffle
        self._window_size = window_size
        self._num_windows = -(-len(records) // window_size)
        self._lengths_of_all: np.ndarray | None = None
        self._examples: dict[int, Example] = {}
        self._recent: deque[tuple[Position, list[list[int]]]] = deque(maxlen=RECENT)
        self.skipped = 0
        """Number of examples skipped as too long so far in the current epoch."""

    def iterate(self, position: Position | None = None, epochs: int | None = None) -> Iterator[tuple[Batch, Position]]:
        """Yield each batch with the position of the next one, starting at `position`.

        Args:
            position: where to start; default: the first batch.
            epochs: stop before this epoch; default: never.

        Raises:
            UserError: if every example of an epoch is too long.
        """
        position = Position() if position is None else position
        while epochs is None or position.epoch < epochs:
            yielded = 0
            if position == (position.epoch, 0, 0):
                self.skipped = 0
            for window in range(position.window, self._num_windows):
                first = position.batch if window == position.window else 0
                plan = self._plan(position.epoch, window)
                own = [self._own_rows(row_length, rows) for row_length, rows in plan[first:]]
                examples = self._encoded([i for rows in own for row in rows for i in row])
                for number, rows in enumerate(own, start=first):
                    batch = self._collate([[examples[i] for i in row] for row in rows], plan[number][0], len(rows))
                    yielded += 1
                    self._recent.append((Position(position.epoch, window, number), plan[number][1]))
                    yield batch, self._after(position.epoch, window, number, len(plan))
            if not yielded and position == (position.epoch, 0, 0):
                raise UserError(
                    f"All {len(self._records):,} examples are longer than config.data.max_length, "
                    f"{self._max_length} tokens; raise it."
                )
            position = Position(position.epoch + 1)

    def blank(self) -> Batch | None:
        """A batch of padding in the one shape that all batches have, or None if there are several shapes."""
        if self._batching != "pack":
            return None
        return self._collate([], self._row_length, len(self._own_rows(self._row_length, [])))

    def records_at(self, position: Position) -> list[int]:
        """Numbers of the records in one of the last `RECENT` batches, over all processes; empty for any other."""
        return sorted(record for at, rows in list(self._recent) if at == position for row in rows for record in row)

    def digest(self) -> str:
        """A hash of at most `DIGESTED` evenly spaced examples, to recognize the same data."""
        numbers = np.unique(np.linspace(0, len(self._records) - 1, DIGESTED).astype(int)).tolist()
        sides = [side for example in self._encode(read_records(self._records, numbers)) for side in example]
        return hashlib.sha256(b"".join(len(side).to_bytes(4) + side.tobytes() for side in sides)).hexdigest()[:12]

    def close(self) -> None:
        """Stop waiting for other processes: an iterator doing so in another thread raises."""
        self._share.close()

    def _num_rows(self, row_length: int) -> int:
        """Rows of a batch that may hold examples."""
        return self._tokens_per_batch // row_length

    def _own_rows(self, row_length: int, rows: list[list[int]]) -> list[list[int]]:
        """The rows of a batch that this process collates; blank rows follow `rows`."""
        all_rows = -(-self._num_rows(row_length) // self._row_multiple) * self._row_multiple
        return [rows[r] if r < len(rows) else [] for r in self._share.rows(all_rows)]

    def _after(self, epoch: int, window: int, number: int, batches_in_window: int) -> Position:
        if number + 1 < batches_in_window:
            return Position(epoch, window, number + 1)
        if window + 1 < self._num_windows:
            return Position(epoch, window + 1)
        return Position(epoch + 1)

    def _plan(self, epoch: int, window: int) -> list[tuple[int, list[list[int]]]]:
        """The batches of a window as (row length, rows of record numbers)."""
        numbers = self._numbers(epoch, window)
        lengths = self._lengths(numbers)
        fits = lengths.max(axis=1) <= self._max_length
        self.skipped += int((~fits).sum())
        numbers, lengths = numbers[fits], lengths[fits]
        if self._batching == "pack":
            groups = {self._row_length: pack_rows(lengths, self._row_length)}
        else:
            groups = bucket_rows(lengths, self._bucket_lengths)
        # The 1 separates this stream from the permutation's: NumPy pads short seeds with zeros.
        order = np.random.default_rng((self._seed, epoch, window, 1))
        batches: list[tuple[int, list[list[int]]]] = []
        for row_length, rows in groups.items():
            rows = [numbers[row].tolist() for row in rows]
            if self._shuffle:
                order.shuffle(rows)
            num_rows = self._num_rows(row_length)
            batches += [(row_length, rows[i : i + num_rows]) for i in range(0, len(rows), num_rows)]
        if self._shuffle:
            order.shuffle(batches)
        return batches

    def _numbers(self, epoch: int, window: int) -> np.ndarray:
        """Record numbers of a window, in the order of the epoch."""
        count = len(self._records)
        order = np.random.default_rng((self._seed, epoch)).permutation(count) if self._shuffle else np.arange(count)
        return order[window * self._window_size : (window + 1) * self._window_size]

    def _lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Lengths of the records of a window, [records, sides]."""
        if self._num_windows > 1:
            self._examples.clear()
            return self._gathered_lengths(numbers)
        if self._lengths_of_all is None:
            self._lengths_of_all = self._gathered_lengths(np.arange(len(self._records)))
        return self._lengths_of_all[numbers]

    def _gathered_lengths(self, numbers: np.ndarray) -> np.ndarray:
        count = self._share.processes
        own = numbers[self._share.process :: count].tolist()
        examples = self._encoded(own)
        gathered = self._share.gather([len(side) for i in own for side in examples[i]])
        lengths = np.empty((len(numbers), sum(map(len, gathered)) // len(numbers)), np.int64)
        for process, theirs in enumerate(gathered):
            lengths[process::count] = np.reshape(theirs, (-1, lengths.shape[1]))
        return lengths

    def _encoded(self, numbers: list[int]) -> dict[int, Example]:
        """Examples by record number: at least these, and all others encoded so far for this window."""
        missing = [i for i in numbers if i not in self._examples]
        if missing:
            self._examples.update(zip(missing, self._encode(read_records(self._records, missing)), strict=True))
        return self._examples


class _Failure(NamedTuple):
    error: BaseException


class Prefetched(Iterator[Item]):
    """The items of another iterator, taken ahead of time by a thread."""

    def __init__(self, iterator: Iterator[Item], depth: int = 2) -> None:
        """Start taking items at once, up to `depth` ahead; an exception of the iterator is re-raised in its turn."""
        self._iterator = iterator
        self._items: queue.Queue[Item | _Failure | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> Item:
        item = None if self._stopped.is_set() else self._items.get()
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        if item is None:
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread; no more items follow."""
        self._stopped.set()
        # The thread puts at most one more item before it sees the flag, and the emptied queue has room for it.
        while not self._items.empty():
            self._items.get_nowait()
        self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._iterator:
                self._items.put(item)
                if self._stopped.is_set():
                    return
            self._items.put(None)
        except BaseException as error:  # re-raised in the consumer
            self._items.put(_Failure(error))


def digest(records: Sequence[Record]) -> str | None:
    """A SHA-256 that identifies a data set: of all records, or of evenly spaced ones if too many must be read for it.

    The records are hashed, not the files of a prepared set: TFDS writes the same records as different bytes, depending
    on the process.

    Returns:
        Hexadecimal digits, the same on every machine; None if the records are not plain data (texts, numbers, and
        tuples, lists or dicts of them).
    """
    is_whole = isinstance(records, list | tuple) or len(records) <= _MOST_READ_FOR_DIGEST
    step = 1 if is_whole else -(-len(records) // _SAMPLED_FOR_DIGEST)
    numbers = range(0, len(records), step)
    hashed = hashlib.sha256(f"{len(records)}\n".encode())
    try:
        for start in range(0, len(numbers), CHUNK):
            hashed.update(json.dumps(read_records(records, numbers[start : start + CHUNK])).encode())
    except (TypeError, ValueError, RecursionError):
        return None
    return hashed.hexdigest()
