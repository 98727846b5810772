"""Which rules a lower line is held to, and how firmly."""

import math
from dataclasses import dataclass, fields
from enum import IntFlag
from functools import cache

from transformer_jax.system.errors import UserError


class Tone(IntFlag):
    """The tones a character can have; one with several readings may have both."""

    LEVEL = 1
    """平: the first and second tones."""
    OBLIQUE = 2
    """仄: the third and fourth."""
    EITHER = LEVEL | OBLIQUE


@cache
def tone(character: str) -> Tone:
    """Which tones a character has in any of its readings.

    A neutral tone counts as either, and so does a character without a reading: it can break no rule of tones.
    """
    # Its tables of readings take longer to load than all else of the package.
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
"""Of a rule that is not hard: more would drown the model's own log-probabilities in rounding."""


@dataclass(frozen=True)
class Rules:
    """A weight for each rule: infinite for a hard one, 0 for one that is off.

    Between them it is the penalty, in nats, for every place that breaks the rule. `judge` says what breaks one.

    Raises:
        UserError: if a weight is negative, no number, or finite and above `LARGEST_WEIGHT`.
    """

    length: float = HARD
    """As many characters as the upper line."""
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
        """Read rules as a person writes them: `length,tones=2,distinct=off`.

        A name alone, or `name=hard`, makes a rule hard; `name=2` gives its weight; `name=off` drops it. Rules that are
        not named keep their default. `none` drops all, `all` makes all hard, and what follows may differ from that.

        Raises:
            UserError: if a name is unknown, a rule named twice, or a weight no number of at least 0.
        """
        weights: dict[str, float] = {}
        base: dict[str, float] = {}
        for index, item in enumerate(part.strip() for part in text.split(",") if part.strip()):
            name, equals, value = (part.strip() for part in item.partition("="))
            if item in ("none", "all") and index == 0:
                base = dict.fromkeys(NAMES, OFF if item == "none" else HARD)
            elif name not in NAMES:
                raise UserError(f"{item!r} is no rule; known: {', '.join(NAMES)}, and at the beginning none or all.")
            elif name in weights:
                raise UserError(f"The rule {name} is named twice in {text!r}; name it once.")
            else:
                weights[name] = _weight(name, value) if equals else HARD
        return cls(**{**base, **weights})

    def __str__(self) -> str:
        """What `parse` reads back."""
        named = {HARD: "hard", OFF: "off"}
        return ",".join(f"{name}={named.get(getattr(self, name), getattr(self, name))}" for name in NAMES)

    def is_hard(self, name: str) -> bool:
        """Whether the rule of this name is hard."""
        return bool(getattr(self, name) == HARD)


NAMES = tuple(field.name for field in fields(Rules))
"""The rules, in the order in which they are told."""


def _weight(name: str, value: str) -> float:
    named = {"hard": HARD, "off": OFF}
    if value in named:
        return named[value]
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{name}={value} gives no weight; write a number of at least 0, hard or off.") from None
