import itertools
from pathlib import Path

import numpy as np
import pytest

from benchmarks.workload import (
    RANDOM_BATCH,
    Examples,
    Shape,
    Tally,
    Workload,
    our_batches,
    padded,
    random_batches,
    read_examples,
    unpacked,
    write_examples,
)

RNG = np.random.default_rng(0)


def workload(folder: Path = Path(), num_classes: int = 0) -> Workload:
    shape = Shape(8, 2, 16, 1, 1, 0.0, True, vocab_size=20, num_classes=num_classes)
    return Workload("toy", shape, 0.1, tokens_per_batch=64, row_length=16, max_length=16, folder=folder)


def pairs(count: int) -> list[tuple[np.ndarray, ...]]:
    return [tuple(RNG.integers(4, 20, RNG.integers(2, 9)).astype(np.int32) for _ in range(2)) for _ in range(count)]


def texts(count: int) -> list[tuple[np.ndarray, ...]]:
    return [(source, np.array([len(source) % 3], np.int32)) for source, _ in pairs(count)]


def as_set(examples) -> set:
    return {tuple(tuple(side.tolist()) for side in example) for example in examples}


def test_token_ids_are_read_as_written(tmp_path):
    written = Examples(pairs(30), pairs(3))
    write_examples(workload(tmp_path).examples_file, written)
    found = read_examples(workload(tmp_path).examples_file)
    for before, after in zip(written, found, strict=True):
        assert [[s.tolist() for s in e] for e in before] == [[s.tolist() for s in e] for e in after]


@pytest.mark.parametrize("num_classes", [0, 3])
def test_packed_batches_hold_the_examples_and_nothing_else(num_classes):
    examples = texts(40) if num_classes else pairs(40)
    epoch = []
    for batch in our_batches(workload(num_classes=num_classes), examples):
        epoch += unpacked(batch)
        if len(epoch) >= 40:
            break
    assert len(epoch) == 40
    assert as_set(epoch) == as_set(examples)


def test_padded_batches_are_as_long_as_their_longest_on_each_side():
    batch = padded(workload(), [(np.arange(4, 7), np.arange(4, 12)), (np.arange(4, 9), np.arange(4, 6))])
    assert batch.source.shape == (2, 5)
    assert batch.labels.shape == batch.target.shape == (2, 8)
    assert as_set(unpacked(batch)) == {((4, 5, 6), tuple(range(4, 12))), ((4, 5, 6, 7, 8), (4, 5))}
    tally = Tally()
    tally.add(batch)
    assert (tally.tokens, tally.real, tally.slots) == (10, 18, 26)


def test_random_batches_go_through_all_before_they_repeat():
    examples = [(np.array([4, n // 16 + 4]), np.array([n % 16 + 4])) for n in range(2 * RANDOM_BATCH)]
    first, second, third = itertools.islice(random_batches(workload(), examples), 3)
    assert len(as_set(unpacked(first)) | as_set(unpacked(second))) == len(as_set(examples))
    assert as_set(unpacked(third)) != as_set(unpacked(first))
