"""From records to batches of token ids, resumable at any batch (numpy only)."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np

from transformer_jax.data.packing import bucket_rows, pack_rows
from transformer_jax.system.errors import UserError

Record = TypeVar("Record")

_CHUNK = 1024


def read_records(records: Sequence[Record], indices: Sequence[int]) -> list[Record]:
    """Records at some indices, by `__getitems__` where the sequence has it (as those of TFDS do)."""
    read_many = getattr(records, "__getitems__", None)
    return list(read_many(list(indices))) if read_many else [records[i] for i in indices]


def spread_evenly(records: Sequence[Record], most: int) -> list[Record]:
    """At most `most` of the records, at equal distances."""
    return read_records(records, range(0, len(records), max(1, -(-len(records) // most))))


class MappedRecords(Sequence[Record], Generic[Record]):
    """A sequence whose records pass through a function as they are read."""

    def __init__(self, records: Any, function: Callable[[Any], Record]) -> None:
        """Wrap anything with a length and random access."""
        self._records = records
        self._function = function

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        return self._function(self._records[range(len(self))[index]])

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self._function(record) for record in read_records(self._records, indices)]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]


Batch = TypeVar("Batch")
Item = TypeVar("Item")

Example = tuple[np.ndarray, ...]
"""Token ids of one record, one int32 vector per side."""

BATCHINGS = ("pack", "bucket")
DIGESTED = 1000
"""Examples that a digest is made of, at most."""


class Position(NamedTuple):
    """Names the next batch; all that a checkpoint needs to store of the data."""

    epoch: int = 0
    window: int = 0
    batch: int = 0


class Share(NamedTuple):
    """What one of several processes has to do with the data. All of them make the same plan of the same batches."""

    process: int
    """The number of this one, from 0."""
    processes: int
    """How many there are."""
    rows: Callable[[int], Sequence[int]]
    """Of a batch of so many rows, those that this process collates."""
    gather: Callable[[list[int]], list[list[int]]]
    """What each process gave, in order; all call it equally often."""
    close: Callable[[], None]
    """Makes a `gather` that is waiting, and all to come, raise."""


ALONE = Share(0, 1, range, lambda own: [own], lambda: None)


class Batches(Generic[Record, Batch]):
    """The batches of a set of records, as a pure function of seed and position.

    An epoch is a permutation of the records drawn from (seed, epoch) and cut into windows. A window is encoded, its
    examples are put into rows, and the rows are shuffled by (seed, epoch, window) and cut into batches, so that no
    batch is special. Shapes are few: `tokens_per_batch // row_length` rows of each row length, and below them
    the blank ones that devices need to share them evenly, so that a batch holds the same examples on any devices.
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
        """Check the options; nothing is read yet.

        Args:
            records: anything with a length and random access.
            encode: records to examples, always the same for the same records.
            collate: rows of examples, their length and their number, blank ones included, to a batch; there may be no
                rows at all, and with "pack" shapes and types are always the same.
            batching: "pack", several examples a row, or "bucket", one a row, by length.
            tokens_per_batch: token slots of a batch, on each side.
            row_length: token slots of a packed row, on each side; at least `max_length` is taken.
            bucket_lengths: row lengths of "bucket"; those above `max_length` are replaced by it.
            max_length: tokens of the longest side of an example; longer examples are left out and counted.
            row_multiple: every batch is filled up with blank rows to a multiple of so many, to be shared out evenly.
            share: of this process in the rows. It reads and encodes the records of those, and besides every
                `share.processes`-th record, whose length it tells the others, as a plan needs all lengths.
            seed: of the order.
            shuffle: False keeps the order of the records, as evaluation wants it.
            window_size: records that are encoded and planned at a time.

        Raises:
            UserError: for an unknown batching, no records, a negative seed, or a batch that holds no row.
        """
        if batching not in BATCHINGS:
            raise UserError(f"config.data.batching is {batching!r}, but must be one of {', '.join(BATCHINGS)}.")
        if not len(records):
            raise UserError("The data set has no records; check the files under config.data.")
        if seed < 0:
            raise UserError(f"config.seed is {seed}, but must not be negative.")
        self._row_length = max(row_length, max_length)
        self._bucket_lengths = sorted({*(n for n in bucket_lengths if n < max_length), max_length})
        longest_row = self._row_length if batching == "pack" else max_length
        if tokens_per_batch < longest_row:
            raise UserError(
                f"config.data.tokens_per_batch is {tokens_per_batch}, but a row may take {longest_row} tokens; raise "
                "it, or lower config.data.max_length and config.data.row_length."
            )
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
        self.skipped = 0
        """Examples left out as too long, so far in the epoch that is being read."""

    def iterate(self, position: Position | None = None, epochs: int | None = None) -> Iterator[tuple[Batch, Position]]:
        """Yield each batch with the position of the one after it, from `position` on.

        Args:
            position: where to begin; None: at the start.
            epochs: stop before this epoch; None: never.

        Raises:
            UserError: if a whole epoch holds no example that is short enough.
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
                    yield batch, self._after(position.epoch, window, number, len(plan))
            if not yielded and position == (position.epoch, 0, 0):
                raise UserError(
                    f"All {len(self._records):,} examples are longer than config.data.max_length, "
                    f"{self._max_length} tokens; raise it."
                )
            position = Position(position.epoch + 1)

    def blank(self) -> Batch | None:
        """A batch of nothing but padding in the one shape that all have, or None if there are several."""
        if self._batching != "pack":
            return None
        return self._collate([], self._row_length, len(self._own_rows(self._row_length, [])))

    def digest(self) -> str:
        """Of some of the examples, spread over all: the same for the same data."""
        numbers = np.unique(np.linspace(0, len(self._records) - 1, DIGESTED).astype(int)).tolist()
        sides = [side for example in self._encode(read_records(self._records, numbers)) for side in example]
        return hashlib.sha256(b"".join(len(side).to_bytes(4) + side.tobytes() for side in sides)).hexdigest()[:12]

    def close(self) -> None:
        """Wait for other processes no more: an iterator that does, in another thread, raises."""
        self._share.close()

    def _num_rows(self, row_length: int) -> int:
        """Rows of a batch that can hold examples."""
        return self._tokens_per_batch // row_length

    def _own_rows(self, row_length: int, rows: list[list[int]]) -> list[list[int]]:
        """Those of a batch that this process collates; blank ones follow those given."""
        all_rows = -(-self._num_rows(row_length) // self._row_multiple) * self._row_multiple
        return [rows[r] if r < len(rows) else [] for r in self._share.rows(all_rows)]

    def _after(self, epoch: int, window: int, number: int, batches_in_window: int) -> Position:
        if number + 1 < batches_in_window:
            return Position(epoch, window, number + 1)
        if window + 1 < self._num_windows:
            return Position(epoch, window + 1)
        return Position(epoch + 1)

    def _plan(self, epoch: int, window: int) -> list[tuple[int, list[list[int]]]]:
        """The batches of a window as (row length, rows of numbers of records)."""
        numbers = self._numbers(epoch, window)
        lengths = self._lengths(numbers)
        fits = lengths.max(axis=1) <= self._max_length
        self.skipped += int((~fits).sum())
        numbers, lengths = numbers[fits], lengths[fits]
        if self._batching == "pack":
            groups = {self._row_length: pack_rows(lengths, self._row_length)}
        else:
            groups = bucket_rows(lengths, self._bucket_lengths)
        # The 1 sets this stream apart from that of the permutation: NumPy fills short seeds up with zeros.
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
        """Of the records of a window, in the order of the epoch."""
        count = len(self._records)
        order = np.random.default_rng((self._seed, epoch)).permutation(count) if self._shuffle else np.arange(count)
        return order[window * self._window_size : (window + 1) * self._window_size]

    def _lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of the records of a window, side by side."""
        if self._num_windows > 1:
            self._examples.clear()
            return self._gathered_lengths(numbers)
        if self._lengths_of_all is None:
            self._lengths_of_all = self._gathered_lengths(np.arange(len(self._records)))
        return self._lengths_of_all[numbers]

    def _gathered_lengths(self, numbers: np.ndarray) -> np.ndarray:
        number, count = self._share.process, self._share.processes
        own = numbers[number::count].tolist()
        examples = self._encoded(own)
        told = self._share.gather([len(side) for i in own for side in examples[i]])
        lengths = np.empty((len(numbers), sum(map(len, told)) // len(numbers)), np.int64)
        for of_process, of_records in enumerate(told):
            lengths[of_process::count] = np.reshape(of_records, (-1, lengths.shape[1]))
        return lengths

    def _encoded(self, numbers: list[int]) -> dict[int, Example]:
        """At least these examples by the numbers of their records; all that were encoded for this window stay."""
        missing = [i for i in numbers if i not in self._examples]
        if missing:
            self._examples.update(zip(missing, self._encode(read_records(self._records, missing)), strict=True))
        return self._examples


class _Failure(NamedTuple):
    error: BaseException


class Prefetched(Iterator[Item]):
    """The items of another iterator, which a thread takes from it ahead of time."""

    def __init__(self, iterator: Iterator[Item], depth: int = 2) -> None:
        """Begin at once to take items, up to `depth` ahead. An exception of the iterator is raised here in its turn."""
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
        """End the thread; there are no more items then."""
        self._stopped.set()
        # At most one more item comes before the thread sees the flag, and an emptied queue has room for it.
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
        except BaseException as error:  # handed over, whatever it is
            self._items.put(_Failure(error))
