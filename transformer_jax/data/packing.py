"""Assign examples to rows by their lengths, without touching the tokens."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


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
