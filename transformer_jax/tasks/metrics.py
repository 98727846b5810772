"""Scores of output texts, shared by tasks: exact matches, perplexity, BLEU and chrF."""

import math
from collections.abc import Sequence


def exact_match(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Share of the hypotheses, from 0 to 1, that equal their reference.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    check_aligned(hypotheses, references)
    return sum(h == r for h, r in zip(hypotheses, references, strict=True)) / len(references)


def perplexity(total_nll: float, count: int | float) -> float:
    """exp(total_nll / count): the perplexity per unit that `count` counts (section 6.2, where it is a word piece).

    Args:
        total_nll: negative log-likelihood of all units together, in nats.
        count: number of units, at least one.
    """
    mean = total_nll / count
    return math.exp(mean) if mean < 700.0 else math.inf  # exp overflows a little later


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

    check_aligned(hypotheses, references)
    scores: dict[str, float | str] = {}
    for name, metric in {"bleu": BLEU(), "bleu_lowercase": BLEU(lowercase=True), "chrf": CHRF()}.items():
        scores[name] = metric.corpus_score(hypotheses, [references]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


def check_aligned(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse empty or unequal lists: sacreBLEU would silently score the shorter one.

    Raises:
        ValueError: if there are none, or the numbers differ.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses):,} hypotheses cannot be scored against {len(references):,} references.")
