import numpy as np
import pytest

from transformer_jax.data import BOS, EOS
from transformer_jax.data.packing import (
    NO_LABEL,
    Seq2SeqBatch,
    TextBatch,
    collate_pairs,
    collate_texts,
    real_token_share,
)


def test_pairs_by_hand():
    rows = [[(np.array([7, 8, EOS]), np.array([9, EOS])), (np.array([5, EOS]), np.array([6, 4, EOS]))]]
    batch = collate_pairs(rows, row_length=6, num_rows=2)
    assert batch.source.tolist() == [[7, 8, EOS, 5, EOS, 0], [0] * 6]
    assert batch.source_segments.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert batch.source_positions.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert batch.target.tolist() == [[BOS, 9, BOS, 6, 4, 0], [0] * 6]
    assert batch.labels.tolist() == [[9, EOS, 6, 4, EOS, 0], [0] * 6]
    assert batch.target_segments.tolist() == [[1, 1, 2, 2, 2, 0], [0] * 6]
    assert batch.target_positions.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    assert all(field.dtype == np.int32 for field in batch)
    assert real_token_share(batch) == 10 / 24


def test_pairs_start_with_the_bos_of_the_vocabulary():
    rows = [[(np.array([7, EOS]), np.array([9, EOS])), (np.array([5, EOS]), np.array([6, 4, EOS]))]]
    batch, usual = collate_pairs(rows, 6, 2, bos=30), collate_pairs(rows, 6, 2)
    assert batch.target.tolist() == [[30, 9, 30, 6, 4, 0], [0] * 6]
    for name in set(Seq2SeqBatch._fields) - {"target"}:
        np.testing.assert_array_equal(getattr(batch, name), getattr(usual, name))


def test_texts_by_hand():
    texts = [
        (np.array([BOS, 7, 8]), np.array([2])),
        (np.array([BOS]), np.array([0])),
        (np.array([BOS, 9]), np.array([1])),
    ]
    batch = collate_texts([texts[:2], texts[2:]], row_length=5, num_rows=3)
    assert batch.tokens.tolist() == [[BOS, 7, 8, BOS, 0], [BOS, 9, 0, 0, 0], [0] * 5]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    nothing = [NO_LABEL] * 5
    assert batch.labels.tolist() == [[2, 0, *nothing[2:]], [1, *nothing[1:]], nothing]
    assert all(field.dtype == np.int32 for field in batch)
    assert real_token_share(batch) == 6 / 15


def test_a_row_full_of_the_shortest_texts_has_a_label_for_each():
    batch = collate_texts([[(np.array([BOS]), np.array([n])) for n in range(4)]], row_length=4, num_rows=1)
    assert batch.labels.tolist() == [[0, 1, 2, 3]]
    assert real_token_share(batch) == 1.0


@pytest.mark.parametrize(
    ("batch", "fields"),
    [
        (
            Seq2SeqBatch,
            "source source_segments source_positions target target_segments target_positions labels",
        ),
        (TextBatch, "tokens segments positions labels"),
    ],
)
def test_fields_are_those_documented(batch, fields):
    assert list(batch._fields) == fields.split()
