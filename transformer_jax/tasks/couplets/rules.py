"""The rules of couplets: their weights, judging lower lines by them, explaining a verdict, and corpus scores."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntFlag
from functools import cache
from itertools import zip_longest

import numpy as np
import regex
from jaxtyping import Float, Int
from rich.cells import cell_len

from transformer_jax.system import UserError
from transformer_jax.tasks.metrics import check_aligned, exact_match

# What shows nothing itself, but belongs to the character before it: joiners, selectors of a variant, tags of a flag.
_ATTACHED = r"[\p{Default_Ignorable_Code_Point}--\p{Grapheme_Cluster_Break=Control}--\p{L}]"
_INVISIBLE = r"[[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]--[\s\p{Prepended_Concatenation_Mark}]]"
_ATTACHED_FIRST = regex.compile(rf"(?V1)^{_ATTACHED}+")
HIDDEN = regex.compile(rf"(?V1){_INVISIBLE}+")
"""What is invisible, but white space."""
_HIDDEN_APART = regex.compile(rf"(?V1)[{_INVISIBLE}--{_ATTACHED}]+")
_SIMPLE = regex.compile(r"[\u3001-\u3029\u4e00-\u9fff\uff01-\uff5e]*")  # a code point is a character, fast to tell
_CLUSTER = regex.compile(r"\X")
_MARK = regex.compile(r"[\p{P}\p{S}\p{Z}\p{Cc}\p{Cf}]")


def characters(line: str) -> list[str]:
    """The characters of a line as its reader counts them: grapheme clusters, after NFC.

    A letter and its accents are one, and so is an emoji of several code points. What is invisible is none and left out,
    unless it belongs to a character; white space counts.
    """
    if _SIMPLE.fullmatch(line):
        return list(line)
    line = _ATTACHED_FIRST.sub("", _HIDDEN_APART.sub("", line))
    found: list[str] = _CLUSTER.findall(unicodedata.normalize("NFC", line))
    return found


def plain(line: str) -> str:
    """A line, or a character, in NFC without anything invisible: 葛 for each of its variants."""
    return unicodedata.normalize("NFC", HIDDEN.sub("", line))


class Tone(IntFlag):
    """The tones a character can have; one with several readings may have both."""

    LEVEL = 1
    """平: the first and second tones."""
    OBLIQUE = 2
    """仄: the third and fourth."""
    EITHER = LEVEL | OBLIQUE


@cache
def tone(character: str) -> Tone:
    """The tones a character has in any of its readings.

    A neutral tone counts as either, and so does a character without a reading: it cannot break the rule of tones.
    """
    # Imported late: its tables load slower than the rest of the package.
    from pypinyin import Style, pinyin

    readings = pinyin(character, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True, errors="ignore")
    found = Tone(0)
    for reading in (reading for alternatives in readings for reading in alternatives):
        number = next((mark for mark in reading if mark.isdigit()), "5")
        found |= {"1": Tone.LEVEL, "2": Tone.LEVEL, "3": Tone.OBLIQUE, "4": Tone.OBLIQUE}.get(number, Tone.EITHER)
    return found or Tone.EITHER


HARD = math.inf
OFF = 0.0
LARGEST_WEIGHT = 1000.0
"""Largest weight of a soft rule; larger ones would lose the model's log-probabilities to rounding."""


@dataclass(frozen=True)
class Rules:
    """A weight for each rule: infinite for a hard one, 0 for one that is off.

    Any other weight is the penalty, in nats, for every place that breaks the rule, as `judge` defines.

    Raises:
        UserError: if a weight is negative, NaN, or finite and above `LARGEST_WEIGHT`.
    """

    length: float = HARD
    """The same number of characters as the upper line."""
    punctuation: float = HARD
    """The marks of the upper line at their places, and no others."""
    repetition: float = HARD
    """Places with equal characters in the upper line have equal ones in the lower, and no other places do."""
    distinct: float = HARD
    """No character of the upper line."""
    tones: float = 1.0
    """Level against oblique (平仄): the last characters, and those at even places."""

    def __post_init__(self) -> None:
        for name in NAMES:
            weight = getattr(self, name)
            if not (0 <= weight <= LARGEST_WEIGHT or weight == HARD):
                raise UserError(
                    f"The weight of the rule {name} is {weight}, but must be hard, or from 0 to {LARGEST_WEIGHT:g}."
                )

    @classmethod
    def parse(cls, text: str) -> "Rules":
        """Read rules written like `length,tones=2,distinct=off`.

        A name alone, or `name=hard`, makes a rule hard; `name=2` gives its weight; `name=off` drops it. Rules that are
        not named keep their default. A leading `none` drops all, `all` makes all hard; the rest changes that.

        Raises:
            UserError: if a name is unknown, a rule named twice, or a weight is not a number of at least 0.
        """
        weights: dict[str, float] = {}
        base: dict[str, float] = {}
        for index, item in enumerate(part.strip() for part in text.split(",") if part.strip()):
            name, equals, value = (part.strip() for part in item.partition("="))
            if item in ("none", "all") and index == 0:
                base = dict.fromkeys(NAMES, OFF if item == "none" else HARD)
            elif name not in NAMES:
                raise UserError(f"{item!r} is not a rule; known: {', '.join(NAMES)}, and at the beginning none or all.")
            elif name in weights:
                raise UserError(f"The rule {name} is named twice in {text!r}; name it once.")
            else:
                weights[name] = _weight(name, value) if equals else HARD
        return cls(**{**base, **weights})

    def __str__(self) -> str:
        """Text that `parse` reads back."""
        named = {HARD: "hard", OFF: "off"}
        return ",".join(f"{name}={named.get(getattr(self, name), getattr(self, name))}" for name in NAMES)

    def is_hard(self, name: str) -> bool:
        """Whether the rule of this name is hard."""
        return bool(getattr(self, name) == HARD)


NAMES = tuple(field.name for field in fields(Rules))
"""The rules, in the order in which they are reported."""


def _weight(name: str, value: str) -> float:
    named = {"hard": HARD, "off": OFF}
    if value in named:
        return named[value]
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{name}={value} is not a weight; write a number of at least 0, hard or off.") from None


@dataclass(frozen=True)
class Verdict:
    """Result of `judge`."""

    broken: dict[str, tuple[int, ...]]
    """Places, from 0, that break each rule; empty if the rule is kept. A place is one of `characters`."""
    upper_ends_level: bool
    """The upper line is irregular: it should end oblique. The lower line is not to blame."""

    def keeps(self, name: str) -> bool:
        """Whether the rule of this name is kept."""
        return not self.broken[name]

    @property
    def kept(self) -> tuple[str, ...]:
        """The rules that are kept."""
        return tuple(name for name in NAMES if self.keeps(name))


def judge(upper: str, lower: str) -> Verdict:
    """Judge a lower line by the five rules. Places are those of `characters`, which are compared as `plain`.

    - length: broken at every place that only one of the lines has.
    - punctuation: broken where one line has a mark and the other has another or none. The other rules ignore marks.
    - repetition: broken at a character that equals an earlier one of the lower line though the upper line's characters
      differ there, or the reverse. A place beyond the upper line equals no other.
    - distinct: broken at a character that occurs anywhere in the upper line.
    - tones: broken at a character without a reading of the tone that `asked_tones` names.
    """
    above, below = places_of(upper), places_of(lower)
    classes = first_places(above) + list(range(len(above), len(below)))
    asked = asked_tones(above)
    verse = [place for place, character in enumerate(below) if not is_mark(character)]
    broken = {
        "length": tuple(range(min(len(above), len(below)), max(len(above), len(below)))),
        "punctuation": tuple(
            place
            for place, (asks, answers) in enumerate(zip_longest(above, below, fillvalue=""))
            if asks != answers and (is_mark(asks) or is_mark(answers))
        ),
        "repetition": tuple(
            place
            for place in verse
            if any(
                (below[place] == below[other]) != (classes[place] == classes[other]) for other in verse if other < place
            )
        ),
        "distinct": tuple(place for place in verse if below[place] in above),
        "tones": tuple(
            place for place in verse if place < len(above) and asked[place] and not asked[place] & tone(below[place])
        ),
    }
    last = _last_character(above)
    return Verdict(broken, last is not None and tone(above[last]) == Tone.LEVEL)


def places_of(line: str) -> list[str]:
    """What the rules compare, place by place: the `characters` of a line, each `plain`."""
    return list(map(plain, characters(line)))


def rule_shares(uppers: Sequence[str], lowers: Sequence[str]) -> dict[str, float]:
    """Share of the couplets (at least one) that keep each rule."""
    verdicts = [judge(upper, lower) for upper, lower in zip(uppers, lowers, strict=True)]
    return {name: sum(verdict.keeps(name) for verdict in verdicts) / len(verdicts) for name in NAMES}


def broken_by_place(
    uppers: Sequence[str], lowers: Sequence[str]
) -> tuple[Float[np.ndarray, "R P"], Int[np.ndarray, "P"]]:
    """How often each rule is broken at each place, and how many couplets have the place.

    Args:
        uppers: upper lines, at least one.
        lowers: one for each; a couplet has the places of its longer line.

    Returns:
        Shares from 0 to 1, a row for each of `NAMES`, and numbers of couplets, up to the last place.
    """
    lengths = [max(len(places_of(upper)), len(places_of(lower))) for upper, lower in zip(uppers, lowers, strict=True)]
    couplets = np.array([sum(length > place for length in lengths) for place in range(max(lengths))])
    broken = np.zeros((len(NAMES), max(lengths)))
    for upper, lower in zip(uppers, lowers, strict=True):
        for row, places in enumerate(judge(upper, lower).broken.values()):
            broken[row, list(places)] += 1
    return broken / couplets, couplets


def is_mark(character: str) -> bool:
    """Whether it is punctuation, a symbol, white space or invisible, and so not a character of the verse.

    The empty string, for a missing character, is not a mark.
    """
    return _MARK.match(character) is not None


def first_places(line: Sequence[str]) -> list[int]:
    """For each place the first one with the same character, so equal values mark equal characters.

    A mark equals no other place.
    """
    return [place if is_mark(character) else line.index(character) for place, character in enumerate(line)]


def asked_tones(upper: Sequence[str]) -> list[Tone]:
    """The tone that the lower line should have at each place: none, level or oblique.

    Counting restarts in every clause, that is after every mark. At even places (from 1) the lower line opposes the
    upper one, and nothing is asked where that may be read either way. The last character of the line should be level,
    as that of the upper line should be oblique. If that can only be level, no lower line keeps both halves of the rule;
    oblique is asked, as it at least opposes, and `Verdict.upper_ends_level` is set.
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


def _last_character(line: Sequence[str]) -> int | None:
    return max((place for place, character in enumerate(line) if not is_mark(character)), default=None)


_SIGNS = {Tone.LEVEL: "平", Tone.OBLIQUE: "仄", Tone.EITHER: "通"}
_BROKEN, _KEPT = "×", "·"


def explain(upper: str, lower: str, gave_up: tuple[str, ...] = ()) -> str:
    """A table of where each rule is kept, as lines of text without a final newline.

    Both lines are printed above each other, a column per place, with their tones: 平 level, 仄 oblique, 通 either.
    Below, × marks places that break a rule.

    Args:
        upper: the upper line.
        lower: the lower line.
        gave_up: rules that no lower line could have kept.
    """
    verdict = judge(upper, lower)
    above, below = characters(upper), characters(lower)
    places = range(max(len(above), len(below)))
    rows = [
        ("upper", above, ""),
        ("", [tone_sign(character) for character in above], "(should end 仄)" if verdict.upper_ends_level else ""),
        ("lower", below, ""),
        ("", [tone_sign(character) for character in below], ""),
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


def tone_sign(character: str) -> str:
    """平 for level, 仄 for oblique, 通 for either; empty for a mark."""
    return "" if is_mark(character) else _SIGNS[tone(plain(character))]


def couplet_scores(lowers: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus scores of the lower lines of couplets, all lines `plain`.

    Args:
        lowers: outputs.
        references: one for each.

    Returns:
        `exact_match`; `bleu` over characters (sacreBLEU, tokenization char) from 0 to 100, with `bleu_signature`;
        `distinct_1` and `distinct_2` of the lower lines (see `distinct`).

    Raises:
        ValueError: if there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU

    check_aligned(lowers, references)
    lowers, references = list(map(plain, lowers)), list(map(plain, references))
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
    lines = map(places_of, texts)
    ngrams = [tuple(line[i : i + n]) for line in lines for i in range(len(line) - n + 1)]
    return len(set(ngrams)) / max(len(ngrams), 1)
