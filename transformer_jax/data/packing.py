"""Rows of examples: which examples share a row, and rows as the padded arrays that a model reads (numpy only)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from transformer_jax.data import BOS

Example = tuple[np.ndarray, ...]
"""Token ids of one record, one int32 vector per side."""


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


class TextBatch(NamedTuple):
    """Rows of labelled texts; segments and positions as in `Seq2SeqBatch`."""

    tokens: Int32[np.ndarray, "B S"]
    segments: Int32[np.ndarray, "B S"]
    positions: Int32[np.ndarray, "B S"]
    labels: Int32[np.ndarray, "B S"]
    """Slot k has the class of segment k + 1, or `NO_LABEL`: a row has at most as many texts as tokens."""


def pack_rows(lengths: Int[np.ndarray, "n sides"], row_length: int) -> list[list[int]]:
    """Pack examples into rows so that no side overflows.

    First-fit decreasing, generalized to several sides: a row repeatedly takes the example that best fills its free
    slots on all sides. Examples of equal lengths are interchangeable, so the algorithm works on kinds of examples, and
    repeats a filling until one of its kinds is used up.

    Args:
        lengths: tokens of each example on each side, from 1 to `row_length`.
        row_length: token slots per row, on each side.

    Returns:
        The indices of each row's examples; among equal lengths, in the given order.

    Raises:
        ValueError: if a length is out of range.
    """
    if not len(lengths):
        return []
    _check(lengths, row_length)
    kinds, kind_of, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
    by_kind = np.split(np.argsort(kind_of.reshape(-1), kind="stable"), np.cumsum(counts)[:-1])
    taken = np.zeros_like(counts)
    rows: list[list[int]] = []
    while counts.any():
        filling = _fill_row(kinds, counts, row_length)
        members, uses = np.unique(filling, return_counts=True)
        for _ in range(int((counts[members] // uses).min())):
            row = []
            for kind in filling:
                row.append(int(by_kind[kind][taken[kind]]))
                taken[kind] += 1
            rows.append(row)
            counts[members] -= uses
    return rows


def bucket_rows(lengths: Int[np.ndarray, "n sides"], bucket_lengths: Sequence[int]) -> dict[int, list[list[int]]]:
    """Give each example its own row, of the smallest bucket length that fits its longest side.

    Args:
        lengths: tokens of each example on each side, from 1 to the largest bucket length.
        bucket_lengths: the possible row lengths.

    Returns:
        For each row length in use, in ascending order, its rows of one index each.

    Raises:
        ValueError: if a length is out of range.
    """
    if not len(lengths):
        return {}
    buckets = np.array(sorted(bucket_lengths))
    _check(lengths, int(buckets[-1]))
    bucket_of = np.searchsorted(buckets, lengths.max(axis=1))
    return {int(buckets[b]): [[int(i)] for i in np.flatnonzero(bucket_of == b)] for b in np.unique(bucket_of)}


def _fill_row(kinds: np.ndarray, counts: np.ndarray, row_length: int) -> list[int]:
    """The kinds of one row's examples, chosen greedily."""
    free = np.full(kinds.shape[1], row_length)
    left = counts.copy()
    candidates = np.flatnonzero(left)
    filling: list[int] = []
    while True:
        candidates = candidates[(left[candidates] > 0) & (kinds[candidates] <= free).all(axis=1)]
        if not len(candidates):
            return filling
        # Weighting each side by its free slots keeps the sides balanced, so that all fill up.
        kind = int(candidates[np.argmax(kinds[candidates] @ free)])
        filling.append(kind)
        left[kind] -= 1
        free = free - kinds[kind]


def _check(lengths: np.ndarray, longest: int) -> None:
    if lengths.min() < 1 or lengths.max() > longest:
        raise ValueError(f"Lengths run from {lengths.min()} to {lengths.max()}, but must lie in 1 to {longest}.")


def collate_pairs(rows: Sequence[Sequence[Example]], row_length: int, num_rows: int, *, bos: int = BOS) -> Seq2SeqBatch:
    """Write rows of examples into one batch; missing rows are padding.

    Args:
        rows: at most `num_rows` rows of (source ids with EOS, target ids with EOS).
        row_length: token slots per row, on each side.
        num_rows: rows of the batch.
        bos: first decoder input of each sentence.
    """
    batch = Seq2SeqBatch(*(np.zeros((num_rows, row_length), np.int32) for _ in Seq2SeqBatch._fields))
    for r, row in enumerate(rows):
        source_start = target_start = 0
        for segment, (source, target) in enumerate(row, start=1):
            source_slots = slice(source_start, source_start + len(source))
            batch.source[r, source_slots] = source
            batch.source_segments[r, source_slots] = segment
            batch.source_positions[r, source_slots] = np.arange(len(source))
            target_slots = slice(target_start, target_start + len(target))
            batch.labels[r, target_slots] = target
            batch.target[r, target_start] = bos
            batch.target[r, target_start + 1 : target_slots.stop] = target[:-1]
            batch.target_segments[r, target_slots] = segment
            batch.target_positions[r, target_slots] = np.arange(len(target))
            source_start, target_start = source_slots.stop, target_slots.stop
    return batch


def collate_texts(rows: Sequence[Sequence[Example]], row_length: int, num_rows: int) -> TextBatch:
    """Write rows of labelled texts into one batch; missing rows are padding.

    Args:
        rows: at most `num_rows` rows of (token ids, class as an array of one element).
        row_length: token slots per row.
        num_rows: rows of the batch.
    """
    batch = TextBatch(*(np.zeros((num_rows, row_length), np.int32) for _ in TextBatch._fields))
    batch.labels.fill(NO_LABEL)
    for r, row in enumerate(rows):
        start = 0
        for segment, (tokens, label) in enumerate(row, start=1):
            slots = slice(start, start + len(tokens))
            batch.tokens[r, slots] = tokens
            batch.segments[r, slots] = segment
            batch.positions[r, slots] = np.arange(len(tokens))
            batch.labels[r, segment - 1] = label[0]
            start = slots.stop
    return batch


def real_token_share(batch: Any) -> float:
    """Fraction of a batch's token slots, over all its `segments` fields, that are not padding."""
    sides = [getattr(batch, name) for name in batch._fields if name.endswith("segments")]
    return sum(np.count_nonzero(side) for side in sides) / sum(side.size for side in sides)
