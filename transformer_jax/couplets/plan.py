"""What the search has to know of one upper line, worked out before it starts.

Forbidding what breaks a rule is not enough: characters that were free to choose may leave too few for the places that
follow. So the search looks ahead, exactly. With repetition hard, the places of a line fall into classes of equal
characters; each class needs one character, no two the same. With tones hard, a class needs one that can have all the
tones that its places ask for. By Hall's theorem there is a way to give every class its character exactly if no group of
classes needs more characters than there are to serve it; and since only tones tell characters apart, four comparisons
decide (`satisfiable`). Where the line as a whole has no solution, rules are given up until it has one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.couplets.judge import asked_tones, first_places, is_mark
from transformer_jax.couplets.rules import Rules
from transformer_jax.couplets.vocabulary import Vocabulary
from transformer_jax.data.tokenizers import PAD, Tokenizer

GIVEN_UP_FIRST = ("tones", "distinct", "repetition", "punctuation", "length")
"""In this order hard rules are given up where no line can keep them all."""
WEIGHT_GIVEN_UP = 1000.0
"""A rule that is given up still costs so many nats a place, and so is broken about as rarely as can be."""


class Weights(NamedTuple):
    """`Rules` as arrays."""

    length: Float[Array | np.ndarray, "*B"]
    punctuation: Float[Array | np.ndarray, "*B"]
    repetition: Float[Array | np.ndarray, "*B"]
    distinct: Float[Array | np.ndarray, "*B"]
    tones: Float[Array | np.ndarray, "*B"]


class UpperLine(NamedTuple):
    """An upper line as arrays, or a batch of them. P counts its places; what is padded with zeros asks nothing."""

    weights: Weights
    length: Int[Array | np.ndarray, "*B"]
    characters: Int[Array | np.ndarray, "*B P"]
    """Its tokens, whether characters or marks."""
    marks: Int[Array | np.ndarray, "*B P"]
    """The token of a mark, UNK included; 0 where a character stands."""
    back: Int[Array | np.ndarray, "*B P"]
    """How many places before this one the same character first stands."""
    tones: Int[Array | np.ndarray, "*B P"]
    """Tones that the lower line's character must be able to have, all of them."""
    needs: Int[Array | np.ndarray, "*B P 4"]
    """How many characters that can have each set of tones the classes need that begin after this place."""


@dataclass(frozen=True)
class Plan:
    """How the lower line to one upper line is searched for."""

    line: UpperLine
    forced: tuple[int, ...]
    """Tokens that must stand at their place, PAD where it is free: the marks, where they are a hard rule."""
    gave_up: tuple[str, ...]
    """Hard rules that no lower line can keep together with the others."""


def make_plan(upper: str, rules: Rules, tokenizer: Tokenizer, vocabulary: Vocabulary) -> Plan:
    """Read one upper line, and give up hard rules until a lower line can keep the rest.

    They are given up in the order of `GIVEN_UP_FIRST`; one that turns out to cost nothing is taken back.
    """
    tokens = np.array(tokenizer.encode(upper), np.int32)
    gave_up: list[str] = []
    held = rules
    for name in GIVEN_UP_FIRST:
        if _possible(upper, tokens, held, vocabulary):
            break
        if rules.is_hard(name):
            held = replace(held, **{name: WEIGHT_GIVEN_UP})
            gave_up.append(name)
    for name in reversed(gave_up):
        harder = replace(held, **{name: getattr(rules, name)})
        if _possible(upper, tokens, harder, vocabulary):
            held = harder
            gave_up.remove(name)
    marks = np.array([is_mark(character) for character in upper], bool)
    tones, needs = _tones_and_needs(upper, held, vocabulary)
    line = UpperLine(
        weights=Weights(*(np.array(getattr(held, name), np.float32) for name in Weights._fields)),
        length=np.array(len(upper), np.int32),
        characters=tokens,
        marks=np.where(marks, tokens, PAD).astype(np.int32),
        back=np.arange(len(upper), dtype=np.int32) - np.array(first_places(upper), np.int32),
        tones=tones,
        needs=needs,
    )
    forced = line.marks[: _end_of_marks(upper)].tolist() if held.is_hard("punctuation") else []
    return Plan(line, tuple(forced), tuple(name for name in Weights._fields if name in gave_up))


def satisfiable(
    supply: Int[Array | np.ndarray, "*#B 4"], needs: Int[Array | np.ndarray, "*#B 4"]
) -> Bool[Array | np.ndarray, "..."] | np.bool_:
    """Whether as many different characters can be found as are needed (Hall's theorem).

    Both count by sets of tones (`Tone`: 1 level, 2 oblique, 3 both). A character serves a need if it can have all the
    tones of it; a need of 0 is served by any.
    """
    level, oblique, either = supply[..., 1], supply[..., 2], supply[..., 3]
    need_any, need_level, need_oblique, need_both = (needs[..., tones] for tones in range(4))
    return (
        (need_both <= either)
        & (need_both + need_level <= either + level)
        & (need_both + need_oblique <= either + oblique)
        & (need_any + need_level + need_oblique + need_both <= level + oblique + either)
    )


def _possible(upper: str, tokens: Int[np.ndarray, " P"], rules: Rules, vocabulary: Vocabulary) -> bool:
    """Whether some lower line keeps all hard rules."""
    usable = np.asarray(vocabulary.tones) > 0
    if rules.is_hard("distinct"):
        usable[tokens] = False
    supply = np.bincount(np.asarray(vocabulary.tones)[usable], minlength=4)
    demands = _demands(upper, rules, vocabulary)
    if rules.is_hard("repetition"):
        return bool(satisfiable(supply, _count(demands.values())))
    # One character may serve them all.
    return all(bool(satisfiable(supply, _count([tones]))) for tones in set(demands.values()))


def _count(tones: Iterable[int]) -> Int[np.ndarray, " 4"]:
    """How often each set of tones stands there."""
    return np.bincount(np.array([*tones], np.int32), minlength=4)


def _tones_and_needs(
    upper: str, rules: Rules, vocabulary: Vocabulary
) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, "P 4"]]:
    """The fields of these names of an `UpperLine`."""
    tones = np.array(asked_tones(upper), np.int32)
    needs = np.zeros((len(upper), 4), np.int32)
    if rules.is_hard("repetition"):
        for place, of_class in _demands(upper, rules, vocabulary).items():
            needs[:place, of_class] += 1
            if rules.is_hard("tones"):
                tones[place] = of_class
    return tones, needs


def _demands(upper: str, rules: Rules, vocabulary: Vocabulary) -> dict[int, int]:
    """Where a character must be found, and the tones that it must be able to have.

    With repetition hard these are the places where classes begin, and the tones are those of all their places.
    """
    asked, classes = asked_tones(upper), first_places(upper)
    demands: dict[int, int] = {}
    for place in _committed(upper, rules, vocabulary):
        begin = classes[place] if rules.is_hard("repetition") else place
        demands[begin] = demands.get(begin, 0) | (int(asked[place]) if rules.is_hard("tones") else 0)
    return demands


def _committed(upper: str, rules: Rules, vocabulary: Vocabulary) -> list[int]:
    """The places of the lower line that the hard rules let hold nothing but a character."""
    if rules.is_hard("punctuation"):
        end = len(upper) if rules.is_hard("length") else _end_of_marks(upper)
        return [place for place in range(end) if not is_mark(upper[place])]
    # Any place may hold a mark instead, if there is one.
    return list(range(len(upper))) if rules.is_hard("length") and not np.any(vocabulary.marks) else []


def _end_of_marks(upper: str) -> int:
    """One more than the place of the last mark."""
    return max((place + 1 for place, character in enumerate(upper) if is_mark(character)), default=0)
