"""Scores of outputs against references: BLEU, chrF, exact matches, perplexity; accuracy, F1, calibration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

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


def translation_scores(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus scores of translations (sacreBLEU; Post, 2018), each with the signature that makes it comparable.

    Args:
        hypotheses: detokenised outputs.
        references: one for each.

    Returns:
        `bleu` (cased, tokenisation 13a), `bleu_lowercase` (both sides lower-cased), `chrf`, all from 0 to 100, and
        their signatures under the same names with `_signature` appended.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU, CHRF

    _check_aligned(hypotheses, references)
    scores: dict[str, float | str] = {}
    for name, metric in {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}.items():
        scores[name] = metric.corpus_score(hypotheses, [references]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def couplet_scores(lowers: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus scores of the lower lines of couplets.

    Args:
        lowers: what was written.
        references: one for each.

    Returns:
        `exact_match`; `bleu` over characters (sacreBLEU, tokenisation char) from 0 to 100, with `bleu_signature`;
        `distinct_1` and `distinct_2` of the lower lines (see `distinct`).

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU

    _check_aligned(lowers, references)
    bleu = BLEU(tokenize="char")
    score = bleu.corpus_score(lowers, [references]).score
    return {
        "exact_match": exact_match(lowers, references),
        "bleu": score,
        "bleu_signature": str(bleu.get_signature()),
        "distinct_1": distinct(lowers, 1),
        "distinct_2": distinct(lowers, 2),
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of the n-grams of characters of all texts together that are different ones (Li et al., 2016)."""
    ngrams = [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Share of the hypotheses, from 0 to 1, that equal their reference.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    _check_aligned(hypotheses, references)
    return sum(h == r for h, r in zip(hypotheses, references, strict=True)) / len(references)


def perplexity(total_nll: float, count: int | float) -> float:
    """exp(total_nll / count): the perplexity per unit that `count` counts (section 6.2, where it is a word piece).

    Args:
        total_nll: negative log-likelihood of all units together, in nats.
        count: how many there are, at least one.
    """
    mean = total_nll / count
    return math.exp(mean) if mean < 700.0 else math.inf  # exp overflows a little later


def classification_scores(
    labels: Int[np.ndarray, "n"], probabilities: Float[np.ndarray, "n C"], class_names: Sequence[str]
) -> ClassificationScores:
    """Scores of predicted probabilities; the prediction is the most probable class, the first of equals.

    Args:
        labels: number of the right class of each example, from 0.
        probabilities: of each class, for each example.
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


def expected_calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> float:
    """By how much confidence differs from accuracy (Guo et al., 2017), from 0 to 1.

    The mean, over 15 bins of equal width weighted by their examples, of the difference between a bin's accuracy and
    its mean confidence.

    Args:
        confidence: probability of the predicted class; a bin holds those above its lower edge, up to the upper one.
        correct: whether that class was right.
    """
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence.astype(np.float64), minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _shares(part: Int[np.ndarray, "C"], whole: Int[np.ndarray, "C"]) -> Float[np.ndarray, "C"]:
    return part / np.maximum(whole, 1)


def _check_aligned(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    # sacreBLEU would score the shorter of the two in silence.
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses):,} hypotheses cannot be scored against {len(references):,} references.")
