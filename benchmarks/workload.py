"""Training data of ours and the peers: the same token ids, in our batches or in those of tutorials (numpy only)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.data import BOS
from transformer_jax.data.packing import Example, Seq2SeqBatch, TextBatch, collate_pairs, collate_texts
from transformer_jax.data.pipeline import Batches

RANDOM_BATCH = 128
"""Sentences per batch in tutorials."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; fields of `transformer_jax.ModelConfig`."""

    d_model: int
    num_heads: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    dropout_rate: float
    norm_first: bool
    vocab_size: int
    num_classes: int
    """0 for an encoder-decoder."""

    def __str__(self) -> str:
        """The sizes, for `Record.work`."""
        decoder = "" if self.num_classes else f"+{self.num_decoder_layers}"
        return (
            f"d_model {self.d_model}, {self.num_heads} heads, d_ff {self.d_ff}, {self.num_encoder_layers}{decoder} "
            f"layers, {'pre' if self.norm_first else 'post'}-norm, dropout {self.dropout_rate:g}, vocabulary "
            f"{self.vocab_size:,}"
        )


@dataclass(frozen=True)
class Workload:
    """A prepared data set and the model for it; picklable and small."""

    name: str
    shape: Shape
    label_smoothing: float
    tokens_per_batch: int
    row_length: int
    max_length: int
    folder: Path
    """Folder with the tokenizer files and the token ids."""

    @property
    def examples_file(self) -> Path:
        """File with the token ids."""
        return self.folder / f"{self.name}.npz"


class Examples(NamedTuple):
    """For each record the token ids of both sides, end of sentence included, or token ids and class numbers."""

    train: list[Example]
    """At most `Workload.max_length` long, as in our batches."""
    validation: list[Example]


def write_examples(path: Path, examples: Examples) -> None:
    """Store token ids."""
    arrays: dict[str, Any] = {}
    for split, records in examples._asdict().items():
        for number, side in enumerate(zip(*records, strict=True)):
            arrays[f"{split}_{number}"] = np.concatenate(side)
            arrays[f"{split}_{number}_lengths"] = np.array([len(ids) for ids in side])
    np.savez(path, **arrays)


def read_examples(path: Path) -> Examples:
    """Read token ids written by `write_examples`."""
    with np.load(path) as arrays:

        def split(name: str) -> list[Example]:
            sides = [
                np.split(arrays[f"{name}_{number}"], np.cumsum(arrays[f"{name}_{number}_lengths"])[:-1])
                for number in range(2)
            ]
            return list(zip(*sides, strict=True))

        return Examples(split("train"), split("validation"))


def unpacked(batch: Any) -> Iterator[Example]:
    """The examples of a packed batch."""
    if isinstance(batch, TextBatch):
        for tokens, segments, labels in zip(batch.tokens, batch.segments, batch.labels, strict=True):
            for segment in range(1, segments.max() + 1):
                yield tokens[segments == segment], labels[segment - 1 : segment]
        return
    sides = batch.source, batch.source_segments, batch.labels, batch.target_segments
    for source, source_segments, labels, target_segments in zip(*sides, strict=True):
        for segment in range(1, source_segments.max() + 1):
            yield source[source_segments == segment], labels[target_segments == segment]


def our_batches(workload: Workload, examples: Sequence[Example]) -> Iterator[Any]:
    """The batches of our training, packed rows of a fixed shape; endless."""
    batches: Batches = Batches(
        examples,
        list,
        _collate(workload),
        batching="pack",
        tokens_per_batch=workload.tokens_per_batch,
        row_length=workload.row_length,
        bucket_lengths=(),
        max_length=workload.max_length,
    )
    return (batch for batch, _ in batches.iterate())


def random_batches(workload: Workload, examples: Sequence[Example], seed: int = 0) -> Iterator[Any]:
    """The batches of tutorials, `RANDOM_BATCH` shuffled examples padded to the longest; endless."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(examples))
        for start in range(0, len(order) - RANDOM_BATCH + 1, RANDOM_BATCH):
            yield padded(workload, [examples[i] for i in order[start : start + RANDOM_BATCH]])


def padded(workload: Workload, examples: Sequence[Example]) -> Any:
    """A batch with one example per row, each side padded to its longest."""
    lengths = np.array([[len(side) for side in example] for example in examples]).max(0)
    batch = _collate(workload)([[example] for example in examples], int(lengths.max()), len(examples))
    if workload.shape.num_classes:
        return batch
    return type(batch)(
        *(
            array[:, : lengths[0 if name.startswith("source") else 1]]
            for name, array in zip(batch._fields, batch, strict=True)
        )
    )


def _collate(workload: Workload) -> Callable[..., Seq2SeqBatch | TextBatch]:
    return collate_texts if workload.shape.num_classes else partial(collate_pairs, bos=BOS)


@dataclass
class Tally:
    """Tokens processed, and the time taken."""

    tokens: int = 0
    """Real tokens of targets, or of a classifier's texts."""
    real: int = 0
    """Real tokens on all sides."""
    slots: int = 0
    """Token slots, padding included."""
    seconds: float = 0.0

    def add(self, batch: Any) -> None:
        """Add a batch."""
        sides = [getattr(batch, name) for name in batch._fields if name.endswith("segments")]
        counts = [int(np.count_nonzero(side)) for side in sides]
        self.tokens += counts[-1]
        self.real += sum(counts)
        self.slots += sum(side.size for side in sides)

    @property
    def rate(self) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds


def measured(train: Callable[[int], Tally], num_steps: int) -> Callable[[], Tally]:
    """Measures `num_steps` steps at a time, each time after an untimed one.

    The system may have taken memory while the process slept; the first step gets it back.
    """
    train(1)

    def measure() -> Tally:
        train(1)
        return train(num_steps)

    return measure
