"""Corpus scores of translations: BLEU and chrF."""

from collections.abc import Sequence

from transformer_jax.tasks.metrics import _check_aligned


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
