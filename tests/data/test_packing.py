import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data.packing import bucket_rows, pack_rows


@st.composite
def lengths_and_row_length(draw):
    row_length = draw(st.integers(1, 20))
    sides = draw(st.integers(1, 3))
    count = draw(st.integers(0, 40))
    sizes = st.integers(1, row_length)
    lengths = draw(st.lists(st.lists(sizes, min_size=sides, max_size=sides), min_size=count, max_size=count))
    return np.array(lengths, np.int64).reshape(count, sides), row_length


@given(lengths_and_row_length())
@settings(max_examples=150, deadline=None)
def test_every_example_has_one_place_and_no_side_overflows(case):
    lengths, row_length = case
    rows = pack_rows(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert row
        assert (lengths[row].sum(axis=0) <= row_length).all()


@given(lengths_and_row_length())
@settings(max_examples=50, deadline=None)
def test_no_two_rows_could_be_one(case):
    lengths, row_length = case
    totals = [lengths[row].sum(axis=0) for row in pack_rows(lengths, row_length)]
    for i, one in enumerate(totals):
        assert all((one + other > row_length).any() for other in totals[:i])


def test_repeated_fillings_equal_first_fit_decreasing():
    """With one side, the rows equal those of textbook first-fit decreasing."""
    lengths = np.random.default_rng(0).integers(1, 30, (300, 1))
    bins: list[list[int]] = []
    for size in sorted(lengths[:, 0].tolist(), reverse=True):
        fitting = next((b for b in bins if sum(b) + size <= 40), None)
        if fitting is None:
            bins.append([size])
        else:
            fitting.append(size)
    rows = [sorted(lengths[row, 0].tolist()) for row in pack_rows(lengths, 40)]
    assert sorted(rows) == sorted(sorted(b) for b in bins)


def test_examples_of_equal_lengths_come_in_the_given_order():
    lengths = np.random.default_rng(0).integers(1, 4, (300, 2))
    order = np.concatenate(pack_rows(lengths, 12))
    for kind in np.unique(lengths, axis=0):
        assert (np.diff(order[(lengths[order] == kind).all(axis=1)]) > 0).all()


def test_full_and_fast_on_sentence_like_lengths():
    random = np.random.default_rng(0)
    source = np.clip(random.lognormal(2.7, 0.5, 30_000).astype(int), 1, 64)
    lengths = np.stack([source, np.clip(source + random.integers(-4, 5, 30_000), 1, 64)], axis=1)
    start = time.process_time()
    rows = pack_rows(lengths, 64)
    assert time.process_time() - start < 2
    assert lengths.sum() / (len(rows) * 2 * 64) >= 0.95
    assert rows == pack_rows(lengths, 64)


def test_buckets_are_the_smallest_that_hold_both_sides():
    lengths = np.array([[3, 8], [9, 2], [8, 8], [1, 1], [16, 1]])
    assert bucket_rows(lengths, (16, 8, 32)) == {8: [[0], [2], [3]], 16: [[1], [4]]}
    assert bucket_rows(lengths[:0], (8,)) == {}


@pytest.mark.parametrize("length", [0, 9])
def test_lengths_out_of_range_are_refused(length):
    lengths = np.array([[4, 4], [4, length]])
    with pytest.raises(ValueError, match="must lie in 1 to 8"):
        pack_rows(lengths, 8)
    with pytest.raises(ValueError, match="must lie in 1 to 8"):
        bucket_rows(lengths, (4, 8))
