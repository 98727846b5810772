"""Random access to records, one by one or, where a source is faster so, many at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

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
