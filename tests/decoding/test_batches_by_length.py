"""Padded batches of sentences of similar length."""

import numpy as np
import pytest

from transformer_jax.data import PAD
from transformer_jax.decoding import scheduler
from transformer_jax.decoding.scheduler import LENGTHS, batches_by_length, padded, round_up


def test_padded_lengths_are_few_and_large_enough():
    assert [round_up(length) for length in (0, 1, 16, 17, 64, 65, 1024)] == [16, 16, 16, 32, 64, 128, 1024]
    assert [round_up(length) for length in (1025, 2048, 2049)] == [2048, 2048, 3072]
    found = {round_up(length) for length in range(5 * LENGTHS[-1] + 1)}
    assert found == {*LENGTHS, *(LENGTHS[-1] * n for n in range(2, 6))}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_sentence_is_in_one_batch_that_holds_it(monkeypatch, batch_size):
    monkeypatch.setattr(scheduler, "TOKENS_AT_A_TIME", 128)
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    seen = []
    for length, rows, chosen in batches_by_length(lengths, batch_size):
        assert 1 <= len(chosen) <= rows <= batch_size
        # A single sentence may be of any length.
        assert rows * length <= 128 or rows == 1
        assert {round_up(lengths[i]) for i in chosen} == {length}
        seen += chosen
    assert sorted(seen) == list(range(200))
    assert list(batches_by_length([], batch_size)) == []


def test_numbers_of_rows_are_few():
    """Each number is a compilation; single sentences are common, and small batches should cost less than full ones."""
    rows_of = {count: [rows for _, rows, _ in batches_by_length([16] * count, 64)] for count in (1, 2, 8, 9, 64, 65)}
    assert rows_of == {1: [1], 2: [8], 8: [8], 9: [64], 64: [64], 65: [64, 1]}
    assert [rows for _, rows, _ in batches_by_length([16] * 30, 256)] == [64]
    assert [rows for _, rows, _ in batches_by_length([16] * 90, 256)] == [256]
    assert [rows for _, rows, _ in batches_by_length([16] * 10, 4)] == [4, 4, 4]
    assert [rows for _, rows, _ in batches_by_length([1024] * 17, 64)] == [16, 1]


def test_padded_by_hand():
    array = padded([[5, 6, 7], [], [8]], rows=4, length=3)
    assert array.tolist() == [[5, 6, 7], [PAD] * 3, [8, PAD, PAD], [PAD] * 3]
    assert array.dtype == np.int32
