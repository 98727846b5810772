from collections.abc import Sequence

import pytest

from transformer_jax.data.pipeline import MappedRecords, read_records, spread_evenly


class Source(Sequence):
    """Numbers that count how they are read."""

    def __init__(self):
        self.single, self.many = 0, 0

    def __len__(self):
        return 3_000

    def __getitem__(self, index):
        self.single += 1
        return index

    def __getitems__(self, indices):
        self.many += 1
        return list(indices)


def test_many_at_once_where_the_source_can():
    source = Source()
    assert read_records(source, [5, 3]) == [5, 3]
    assert (source.single, source.many) == (0, 1)
    assert read_records("abc", [2, 0]) == ["c", "a"]


def test_mapped():
    source = Source()
    mapped = MappedRecords(source, str)
    assert list(mapped) == [str(i) for i in range(3_000)]
    assert (source.single, source.many) == (0, 3)
    assert mapped[7] == "7"
    assert mapped[-1] == "2999"
    assert mapped[10:16:2] == ["10", "12", "14"]
    assert read_records(mapped, [4, 1]) == ["4", "1"]


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(1, [0]), (3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (9, [0, 2, 4, 6, 8]), (10, range(10)), (99, range(10))],
)
def test_records_spread_evenly(most, chosen):
    assert spread_evenly(range(10), most) == list(chosen)
