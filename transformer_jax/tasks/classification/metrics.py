"""Scores of a classifier: accuracy, F1, calibration, and its confusion matrix as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.cells import cell_len

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier; shares are from 0 to 1, and a share of nothing is 0."""

    class_names: tuple[str, ...]
    accuracy: float
    macro_f1: float
    """Mean F1 of the classes that occur or are predicted, each counting the same."""
    expected_calibration_error: float
    precision: Float[np.ndarray, "C"]
    """Per class: the share of its predictions that are right."""
    recall: Float[np.ndarray, "C"]
    """Per class: the share of its examples that are found."""
    f1: Float[np.ndarray, "C"]
    """Per class: harmonic mean of precision and recall."""
    support: Int[np.ndarray, "C"]
    """Per class: how many examples it has."""
    confusion: Int[np.ndarray, "C C"]
    """Examples by their class (rows) and the predicted one (columns)."""


def classification_scores(
    labels: Int[np.ndarray, "n"], probabilities: Float[np.ndarray, "n C"], class_names: Sequence[str]
) -> ClassificationScores:
    """Scores of predicted probabilities; the prediction is the most probable class, the first of equals.

    Args:
        labels: number of the right class of each example, from 0.
        probabilities: probability of each class, for each example.
        class_names: in the order of their numbers.

    Raises:
        ValueError: if there are no examples, or labels, probabilities and names don't fit together.
    """
    examples, classes = probabilities.shape
    if len(labels) != examples or not examples:
        raise ValueError(f"{examples:,} predictions cannot be scored against {len(labels):,} labels.")
    if len(class_names) != classes:
        raise ValueError(f"There are {classes:,} classes, but {len(class_names):,} names of classes.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Labels must be from 0 to {classes - 1:,}, but are from {labels.min():,} to {labels.max():,}."
        )
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    right, support = confusion.diagonal(), confusion.sum(axis=1)
    occurrences = support + confusion.sum(axis=0)
    f1 = _shares(2 * right, occurrences)
    return ClassificationScores(
        class_names=tuple(class_names),
        accuracy=float(right.sum() / examples),
        macro_f1=float(f1[occurrences > 0].mean()),
        expected_calibration_error=expected_calibration_error(probabilities.max(axis=1), predictions == labels),
        precision=_shares(right, confusion.sum(axis=0)),
        recall=_shares(right, support),
        f1=f1,
        support=support,
        confusion=confusion,
    )


class Calibration(NamedTuple):
    """Accuracy and confidence of the examples of each bin of confidence; 0 in an empty bin."""

    accuracy: Float[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    """Their mean confidence."""
    examples: Int[np.ndarray, "bins"]
    """How many there are."""


def calibration(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> Calibration:
    """The calibration of predictions in 15 bins of equal width, from 0 to 1.

    Args:
        confidence: probability of the predicted class; a bin holds those above its lower edge, up to the upper one.
        correct: whether that class was right.
    """
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)

    def sums(values: np.ndarray | None) -> np.ndarray:
        return np.bincount(bins, weights=values, minlength=CALIBRATION_BINS)

    examples = sums(None)
    right, confidences = sums(correct.astype(np.float64)), sums(confidence.astype(np.float64))
    return Calibration(right / np.maximum(examples, 1), confidences / np.maximum(examples, 1), examples)


def expected_calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> float:
    """By how much confidence differs from accuracy (Guo et al., 2017), from 0 to 1.

    The mean, over the bins of `calibration` weighted by their examples, of the difference between a bin's accuracy and
    its mean confidence. Arguments are those of `calibration`.
    """
    found = calibration(confidence, correct)
    return float(np.abs(found.accuracy - found.confidence) @ found.examples / len(confidence))


def _shares(part: Int[np.ndarray, "C"], whole: Int[np.ndarray, "C"]) -> Float[np.ndarray, "C"]:
    return part / np.maximum(whole, 1)


_CORNER = "true \\ predicted"


def confusion_table(matrix: Int[np.ndarray, "C C"], names: Sequence[str]) -> str:
    """A confusion matrix as aligned lines of text, without a newline at the end.

    Args:
        matrix: examples by their class (rows) and the predicted one (columns).
        names: names of the classes; characters may be wide, as in Chinese.

    Raises:
        ValueError: if there are not as many names as classes.
    """
    if len(names) != len(matrix):
        raise ValueError(f"There are {len(matrix):,} classes, but {len(names):,} names of classes.")
    rows = [[_CORNER, *names]]
    rows += [[name, *(f"{count:,}" for count in counts)] for name, counts in zip(names, matrix, strict=True)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        padded = [first + " " * (widths[0] - cell_len(first))]
        padded += [" " * (width - cell_len(cell)) + cell for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(padded))
    return "\n".join(lines)
