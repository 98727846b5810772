"""Scores that several tasks share: exact matches and perplexity."""

import math
from collections.abc import Sequence


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


def _check_aligned(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    # sacreBLEU would score the shorter of the two in silence.
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses):,} hypotheses cannot be scored against {len(references):,} references.")
