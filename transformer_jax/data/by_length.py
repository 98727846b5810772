"""Sentences put into padded batches with others of like length, for models that answer (numpy only)."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from transformer_jax.data.tokenizers import PAD

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
