"""Which examples share a row: plans over lengths, without touching the tokens."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def pack_rows(lengths: Int[np.ndarray, "n sides"], row_length: int) -> list[list[int]]:
    """Put examples into rows so that no side overflows.

    First-fit decreasing, widened to several sides: a row takes, again and again, the example that best fills what
    is left of it on all sides. Examples of equal lengths are interchangeable, so the work is done on kinds of
    examples, and a filling is repeated for as long as its kinds last.

    Args:
        lengths: tokens of each example on each side, each at least 1 and at most `row_length`.
        row_length: token slots of a row, on each side.

    Returns:
        For each row the indices of its examples; among equal lengths, in the order given.
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
    """Give each example a row of its own, as long as the smallest bucket that holds its longest side.

    Args:
        lengths: tokens of each example on each side, at most the largest bucket.
        bucket_lengths: the row lengths there are.

    Returns:
        For each row length in use, in ascending order, its rows, each holding one index.
    """
    if not len(lengths):
        return {}
    buckets = np.array(sorted(bucket_lengths))
    _check(lengths, int(buckets[-1]))
    bucket_of = np.searchsorted(buckets, lengths.max(axis=1))
    return {int(buckets[b]): [[int(i)] for i in np.flatnonzero(bucket_of == b)] for b in np.unique(bucket_of)}


def _fill_row(kinds: np.ndarray, counts: np.ndarray, row_length: int) -> list[int]:
    """Kinds of the examples of one row, chosen greedily."""
    free = np.full(kinds.shape[1], row_length)
    left = counts.copy()
    candidates = np.flatnonzero(left)
    filling: list[int] = []
    while True:
        candidates = candidates[(left[candidates] > 0) & (kinds[candidates] <= free).all(axis=1)]
        if not len(candidates):
            return filling
        # Weighing each side by its free slots keeps the sides level, so that both fill up.
        kind = int(candidates[np.argmax(kinds[candidates] @ free)])
        filling.append(kind)
        left[kind] -= 1
        free = free - kinds[kind]


def _check(lengths: np.ndarray, longest: int) -> None:
    if lengths.min() < 1 or lengths.max() > longest:
        raise ValueError(f"Lengths run from {lengths.min()} to {lengths.max()}, but must lie in 1 to {longest}.")
