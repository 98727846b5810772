"""Judges finished couplets by the rules, explains a verdict and scores a corpus."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from transformer_jax.tasks.couplets.rules import NAMES, Tone, tone
from transformer_jax.tasks.metrics import check_aligned, exact_match


@dataclass(frozen=True)
class Verdict:
    """What `judge` found."""

    broken: dict[str, tuple[int, ...]]
    """For each rule the places, counted from 0, that break it; none if the rule is kept."""
    upper_ends_level: bool
    """The upper line itself is irregular: it should end oblique. It is not the lower line's fault."""

    def keeps(self, name: str) -> bool:
        """Whether the rule of this name is kept."""
        return not self.broken[name]

    @property
    def kept(self) -> tuple[str, ...]:
        """The rules that are kept."""
        return tuple(name for name in NAMES if self.keeps(name))


def judge(upper: str, lower: str) -> Verdict:
    """Judge a lower line by the five rules.

    - length: broken at every place that only one of the lines has.
    - punctuation: broken where one line has a mark and the other has another or none. The other rules pass over marks.
    - repetition: broken at a character that equals an earlier one of the lower line though the upper line's characters
      differ there, or the reverse. A place without a character in the upper line is like no other.
    - distinct: broken at a character that stands anywhere in the upper line.
    - tones: broken at a character that has no reading of the tone that `asked_tones` names.
    """
    marks = [is_mark(character) for character in lower]
    places = range(min(len(upper), len(lower)), max(len(upper), len(lower)))
    classes = first_places(upper) + list(range(len(upper), len(lower)))
    asked = asked_tones(upper)
    characters = [place for place in range(len(lower)) if not marks[place]]
    broken = {
        "length": tuple(places),
        "punctuation": tuple(
            place
            for place, (above, below) in enumerate(_paired(upper, lower))
            if above != below and (is_mark(above) or is_mark(below))
        ),
        "repetition": tuple(
            place
            for place in characters
            if any(
                (lower[place] == lower[other]) != (classes[place] == classes[other])
                for other in characters
                if other < place
            )
        ),
        "distinct": tuple(place for place in characters if lower[place] in upper),
        "tones": tuple(
            place
            for place in characters
            if place < len(upper) and asked[place] and not asked[place] & tone(lower[place])
        ),
    }
    last = _last_character(upper)
    return Verdict(broken, last is not None and tone(upper[last]) == Tone.LEVEL)


def rule_shares(uppers: Sequence[str], lowers: Sequence[str]) -> dict[str, float]:
    """For each rule the share of the couplets, at least one, that keep it."""
    verdicts = [judge(upper, lower) for upper, lower in zip(uppers, lowers, strict=True)]
    return {name: sum(verdict.keeps(name) for verdict in verdicts) / len(verdicts) for name in NAMES}


def is_mark(character: str) -> bool:
    """Whether it is punctuation, a symbol, white space or invisible, and so no character of the verse.

    The empty string, for want of a character, is no mark.
    """
    category = unicodedata.category(character) if character else ""
    return category[:1] in ("P", "S", "Z") or category in ("Cc", "Cf")


def first_places(line: str) -> list[int]:
    """For each place the first one with the same character: places with the same answer are of one class.

    A mark is in a class of its own.
    """
    return [place if is_mark(character) else line.index(character) for place, character in enumerate(line)]


def asked_tones(upper: str) -> list[Tone]:
    """Which tone the lower line should have at each place: none, level or oblique.

    Places are counted anew in every clause, that is after every mark. At even places (from 1) the lower line opposes
    the upper one, and asks nothing where that may be read either way. The last character of the whole line should be
    level, as that of the upper line should be oblique. If that can only be level, no lower line keeps both halves of
    the rule; what it can still do is oppose, so oblique is asked, and `Verdict.upper_ends_level` tells.
    """
    opposite = {Tone.LEVEL: Tone.OBLIQUE, Tone.OBLIQUE: Tone.LEVEL, Tone.EITHER: Tone(0)}
    asked = [Tone(0)] * len(upper)
    place_in_clause = 0
    for place, character in enumerate(upper):
        place_in_clause = 0 if is_mark(character) else place_in_clause + 1
        if place_in_clause > 0 and place_in_clause % 2 == 0:
            asked[place] = opposite[tone(character)]
    last = _last_character(upper)
    if last is not None:
        asked[last] = opposite[tone(upper[last])] or Tone.LEVEL
    return asked


def _last_character(line: str) -> int | None:
    return max((place for place, character in enumerate(line) if not is_mark(character)), default=None)


def _paired(upper: str, lower: str) -> list[tuple[str, str]]:
    return [(upper[place : place + 1], lower[place : place + 1]) for place in range(max(len(upper), len(lower)))]


_SIGNS = {Tone.LEVEL: "平", Tone.OBLIQUE: "仄", Tone.EITHER: "通"}
_BROKEN, _KEPT = "×", "·"


def explain(upper: str, lower: str, gave_up: tuple[str, ...] = ()) -> str:
    """Which rule holds where, as lines of text without a newline at the end.

    Both lines stand above each other, a column a place, with their tones: 平 level, 仄 oblique, 通 either. Below, × is
    where a rule is broken.

    Args:
        upper: the upper line.
        lower: the lower line.
        gave_up: rules that no lower line could have kept.
    """
    verdict = judge(upper, lower)
    places = range(max(len(upper), len(lower)))
    rows = [
        ("upper", list(upper), ""),
        ("", [_sign(character) for character in upper], "(should end 仄)" if verdict.upper_ends_level else ""),
        ("lower", list(lower), ""),
        ("", [_sign(character) for character in lower], ""),
    ]
    for name in NAMES:
        broken = verdict.broken[name]
        count = f"broken at {len(broken)} place{'s' * (len(broken) > 1)}"
        remark = "kept" if not broken else f"{count}, given up" if name in gave_up else count
        rows.append((name, [_BROKEN if place in broken else _KEPT for place in places], remark))
    lines = []
    for name, cells, remark in rows:
        cells = cells + [""] * (len(places) - len(cells))
        padded = [cell + " " * (2 - cell_len(cell)) for cell in cells]
        lines.append(f"{name:<12}{''.join(padded)}  {remark}".rstrip())
    return "\n".join(lines)


def _sign(character: str) -> str:
    return "" if is_mark(character) else _SIGNS[tone(character)]


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
