"""Rows of examples as the padded arrays that a model reads (numpy only)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from transformer_jax.data.pipeline import Example
from transformer_jax.data.tokenizers import BOS, PAD

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
"""Sentences are padded to the next of these, longer ones to a multiple of the last; one compilation each."""
ROWS = (1, 8, 64)
"""Batches that are not full have so many rows, or as many as full ones; one compilation each too."""
TOKENS_AT_A_TIME = 16_384
"""A batch has at most so many tokens, padding included, which bounds memory."""


def round_up(length: int) -> int:
    """The padded length."""
    return next((n for n in LENGTHS if n >= length), -(-length // LENGTHS[-1]) * LENGTHS[-1])


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[int, int, list[int]]]:
    """Cut sentences into batches of one padded length: (length, rows, which sentences)."""
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(round_up(length), []).append(i)
    for length, members in sorted(groups.items()):
        most = max(1, min(batch_size, TOKENS_AT_A_TIME // length))
        for start in range(0, len(members), most):
            chosen = members[start : start + most]
            rows = next(n for n in sorted({min(size, most) for size in (*ROWS, most)}) if n >= len(chosen))
            yield length, rows, chosen


def padded(sentences: Sequence[Sequence[int]], rows: int, length: int) -> Int[np.ndarray, "B T"]:
    """Sentences as the first rows of an array, `PAD` elsewhere."""
    array = np.full((rows, length), PAD, np.int32)
    for row, sentence in enumerate(sentences):
        array[row, : len(sentence)] = sentence
    return array


NO_LABEL = -1


class Seq2SeqBatch(NamedTuple):
    """Rows of sentence pairs.

    Segments number the sentences of a row 1, 2, ...; 0 is padding. Positions restart at 0 in each sentence. `target`
    is the decoder's input, `labels` the same shifted left by one token (section 3.1).
    """

    source: Int32[np.ndarray, "B S"]
    source_segments: Int32[np.ndarray, "B S"]
    source_positions: Int32[np.ndarray, "B S"]
    target: Int32[np.ndarray, "B T"]
    target_segments: Int32[np.ndarray, "B T"]
    target_positions: Int32[np.ndarray, "B T"]
    labels: Int32[np.ndarray, "B T"]


def collate_pairs(
    rows: Sequence[Sequence[Example]], row_length: int, num_rows: int, *, start: int = BOS
) -> Seq2SeqBatch:
    """Write rows of examples into one batch; rows that are not given stay padding.

    Args:
        rows: at most `num_rows` rows of (source ids + end, target ids + end).
        row_length: token slots of a row, on each side.
        num_rows: rows of the batch.
        start: the token that a decoder reads first.
    """
    batch = Seq2SeqBatch(*(np.zeros((num_rows, row_length), np.int32) for _ in Seq2SeqBatch._fields))
    for r, row in enumerate(rows):
        source_start = target_start = 0
        for segment, (source, target) in enumerate(row, start=1):
            of_source = slice(source_start, source_start + len(source))
            batch.source[r, of_source] = source
            batch.source_segments[r, of_source] = segment
            batch.source_positions[r, of_source] = np.arange(len(source))
            of_target = slice(target_start, target_start + len(target))
            batch.labels[r, of_target] = target
            batch.target[r, target_start] = start
            batch.target[r, target_start + 1 : of_target.stop] = target[:-1]
            batch.target_segments[r, of_target] = segment
            batch.target_positions[r, of_target] = np.arange(len(target))
            source_start, target_start = of_source.stop, of_target.stop
    return batch


class TextBatch(NamedTuple):
    """Rows of labelled texts; segments and positions as in `Seq2SeqBatch`."""

    tokens: Int32[np.ndarray, "B S"]
    segments: Int32[np.ndarray, "B S"]
    positions: Int32[np.ndarray, "B S"]
    labels: Int32[np.ndarray, "B S"]
    """In slot k the class of segment k + 1, or -1: a row holds at most as many texts as tokens."""


def collate_texts(rows: Sequence[Sequence[Example]], row_length: int, num_rows: int) -> TextBatch:
    """Write rows of labelled texts into one batch; rows that are not given stay padding.

    Args:
        rows: at most `num_rows` rows of (token ids, class as an array of one).
        row_length: token slots of a row.
        num_rows: rows of the batch.
    """
    batch = TextBatch(*(np.zeros((num_rows, row_length), np.int32) for _ in TextBatch._fields))
    batch.labels.fill(NO_LABEL)
    for r, row in enumerate(rows):
        start = 0
        for segment, (tokens, label) in enumerate(row, start=1):
            filled = slice(start, start + len(tokens))
            batch.tokens[r, filled] = tokens
            batch.segments[r, filled] = segment
            batch.positions[r, filled] = np.arange(len(tokens))
            batch.labels[r, segment - 1] = label[0]
            start = filled.stop
    return batch


def real_token_share(batch: Any) -> float:
    """Share of the token slots of a batch, on all its sides together, that hold tokens and not padding."""
    sides = [getattr(batch, name) for name in batch._fields if name.endswith("segments")]
    return sum(np.count_nonzero(side) for side in sides) / sum(side.size for side in sides)
