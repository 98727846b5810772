"""Scores of output texts, shared by tasks: exact matches, perplexity, BLEU, chrF and distinct n-grams."""

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


def couplet_scores(lowers: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus scores of the lower lines of couplets.

    Args:
        lowers: outputs.
        references: one for each.

    Returns:
        `exact_match`; `bleu` over characters (sacreBLEU, tokenisation char) from 0 to 100, with `bleu_signature`;
        `distinct_1` and `distinct_2` of the lower lines (see `distinct`).

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU

    check_aligned(lowers, references)
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


def check_aligned(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse empty or unequal lists: sacreBLEU would silently score the shorter one.

    Raises:
        ValueError: if there are none, or the numbers differ.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses):,} hypotheses cannot be scored against {len(references):,} references.")
