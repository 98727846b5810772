"""The rules as constraints on the search: the demands of each upper line, place by place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.data import EOS, PAD, UNK
from transformer_jax.data.tokenizers import CharTokenizer, Tokenizer
from transformer_jax.decoding import LogitsProcessor
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.rules import Rules, asked_tones, characters, first_places, is_mark, plain, tone

_NUM_SPECIAL = 4


class Vocabulary(NamedTuple):
    """Two tables over the tokens; special tokens, white space and what does not stand alone are in neither."""

    tones: Int[Array | np.ndarray, " V"]
    """The `Tone` of a character; 0 for other tokens."""
    marks: Bool[Array | np.ndarray, " V"]
    """Whether the token is a mark, white space apart."""


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Look every token up, once for each tokenizer.

    Raises:
        UserError: if the tokens are not characters.
    """
    if not isinstance(tokenizer, CharTokenizer):
        raise UserError('The rules of couplets need characters as tokens; train with config.tokenizer.kind="char".')
    return _look_up(tokenizer)


@lru_cache(maxsize=8)  # looking thousands of characters up takes seconds
def _look_up(tokenizer: CharTokenizer) -> Vocabulary:
    pieces = ["", *(tokenizer.piece(token) for token in range(1, tokenizer.vocab_size))]
    usable = [token >= _NUM_SPECIAL and _stands_alone(piece) for token, piece in enumerate(pieces)]
    marks = [can and is_mark(piece) for can, piece in zip(usable, pieces, strict=True)]
    tones = [
        int(tone(piece)) if can and not mark else 0 for can, mark, piece in zip(usable, marks, pieces, strict=True)
    ]
    return Vocabulary(np.array(tones, np.int32), np.array(marks, bool))


def _stands_alone(piece: str) -> bool:
    """Whether a token is one visible character, next to any other: so a line has as many characters as tokens.

    Accents, joiners, selectors, halves of flags and parts of Hangul syllables, all of which may become one with their
    neighbours, do so next to themselves.
    """
    return characters(piece * 2) == [piece, piece] and not piece.isspace()


GIVEN_UP_FIRST = ("tones", "distinct", "repetition", "punctuation", "length")
"""In this order hard rules are given up where no line can keep them all."""
WEIGHT_GIVEN_UP = 1000.0
"""Penalty in nats per place of a rule that is given up, so that it is broken as rarely as possible."""


class Weights(NamedTuple):
    """`Rules` as arrays."""

    length: Float[Array | np.ndarray, "*B"]
    punctuation: Float[Array | np.ndarray, "*B"]
    repetition: Float[Array | np.ndarray, "*B"]
    distinct: Float[Array | np.ndarray, "*B"]
    tones: Float[Array | np.ndarray, "*B"]


class UpperLine(NamedTuple):
    """An upper line as arrays, or a batch of them.

    P is the number of places, which are the characters of the line; padding (zeros) asks nothing.
    """

    weights: Weights
    length: Int[Array | np.ndarray, "*B"]
    characters: Int[Array | np.ndarray, "*B P"]
    """The token of each place, whether character or mark; UNK for those of several code points, too."""
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

    characters: list[str]
    """Of the upper line."""
    line: UpperLine
    forced: tuple[int, ...]
    """Tokens that must stand at their place, PAD where it is free: the marks, where they are a hard rule."""
    gave_up: tuple[str, ...]
    """Hard rules that no lower line can keep together with the others."""


def make_plan(upper: str, rules: Rules, tokenizer: Tokenizer, vocabulary: Vocabulary) -> Plan:
    """Read one upper line, and give up hard rules until a lower line can keep the rest.

    They are given up in the order of `GIVEN_UP_FIRST`; one that turns out to cost nothing is taken back.
    """
    shown = characters(upper)
    places = list(map(plain, shown))
    tokens = np.array([ids[0] if len(ids) == 1 else UNK for ids in tokenizer.encode_batch(places)], np.int32)
    gave_up: list[str] = []
    held = rules
    for name in GIVEN_UP_FIRST:
        if _possible(places, tokens, held, vocabulary):
            break
        if rules.is_hard(name):
            held = replace(held, **{name: WEIGHT_GIVEN_UP})
            gave_up.append(name)
    for name in reversed(gave_up):
        harder = replace(held, **{name: getattr(rules, name)})
        if _possible(places, tokens, harder, vocabulary):
            held = harder
            gave_up.remove(name)
    marks = np.array([is_mark(character) for character in places], bool)
    tones, needs = _tones_and_needs(places, held, vocabulary)
    line = UpperLine(
        weights=Weights(*(np.array(getattr(held, name), np.float32) for name in Weights._fields)),
        length=np.array(len(places), np.int32),
        characters=tokens,
        marks=np.where(marks, tokens, PAD).astype(np.int32),
        back=np.arange(len(places), dtype=np.int32) - np.array(first_places(places), np.int32),
        tones=tones,
        needs=needs,
    )
    forced = line.marks[: _end_of_marks(places)].tolist() if held.is_hard("punctuation") else []
    return Plan(shown, line, tuple(forced), tuple(name for name in Weights._fields if name in gave_up))


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


def _possible(upper: Sequence[str], tokens: Int[np.ndarray, " P"], rules: Rules, vocabulary: Vocabulary) -> bool:
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
    upper: Sequence[str], rules: Rules, vocabulary: Vocabulary
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


def _demands(upper: Sequence[str], rules: Rules, vocabulary: Vocabulary) -> dict[int, int]:
    """Where a character must be found, and the tones that it must be able to have.

    With repetition hard these are the places where classes begin, and the tones are those of all their places.
    """
    asked, classes = asked_tones(upper), first_places(upper)
    demands: dict[int, int] = {}
    for place in _committed(upper, rules, vocabulary):
        begin = classes[place] if rules.is_hard("repetition") else place
        demands[begin] = demands.get(begin, 0) | (int(asked[place]) if rules.is_hard("tones") else 0)
    return demands


def _committed(upper: Sequence[str], rules: Rules, vocabulary: Vocabulary) -> list[int]:
    """The places of the lower line that the hard rules let hold nothing but a character."""
    if rules.is_hard("punctuation"):
        end = len(upper) if rules.is_hard("length") else _end_of_marks(upper)
        return [place for place in range(end) if not is_mark(upper[place])]
    # Any place may hold a mark instead, if there is one.
    return list(range(len(upper))) if rules.is_hard("length") and not np.any(vocabulary.marks) else []


def _end_of_marks(upper: Sequence[str]) -> int:
    """One more than the place of the last mark."""
    return max((place + 1 for place, character in enumerate(upper) if is_mark(character)), default=0)


def keep_rules(vocabulary: Vocabulary, lines: UpperLine) -> LogitsProcessor:
    """Hold the lower lines of a batch to the rules of their plans, place by place.

    What breaks a hard rule is forbidden, and with repetition hard also what would leave too few characters for the
    places that follow. What breaks a weighted rule costs its weight. A rule that is off changes nothing.

    Args:
        vocabulary: the model's vocabulary.
        lines: of B upper lines. The marks that their plans force are left to the `prefix` of the search.
    """

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        is_end = jnp.arange(log_probs.shape[-1]) == EOS
        is_character = jnp.asarray(vocabulary.tones) > 0
        is_token = is_end | is_character | jnp.asarray(vocabulary.marks)
        earlier = _earlier(vocabulary, lines, history, step)
        broken = Weights(
            length=_breaks_length(lines, step, is_end),
            punctuation=_breaks_punctuation(lines, step, is_end, jnp.asarray(vocabulary.marks)),
            repetition=is_character & earlier.breaks_repetition,
            distinct=is_character & _in_upper(lines, len(is_character))[:, None],
            tones=_breaks_tones(vocabulary, lines, step)[:, None],
        )
        allowed = jnp.where(is_token, log_probs, -jnp.inf)
        for weight, places in zip(lines.weights, broken, strict=True):
            weight = jnp.asarray(weight)[:, None, None]
            hard = jnp.isinf(weight)
            allowed = jnp.where(hard & (places > 0), -jnp.inf, allowed - jnp.where(hard, 0.0, weight) * places)
        free = is_character & ~earlier.used & ~(_is_hard(lines.weights.distinct) & (broken.distinct > 0))
        dead_end = earlier.begins_class[..., None] & _leaves_too_few(vocabulary, lines, step, free)
        return jnp.where(_is_hard(lines.weights.repetition) & dead_end, -jnp.inf, allowed)

    return process


def _is_hard(weight: Float[Array | np.ndarray, " B"]) -> Bool[Array, "B 1 1"]:
    return jnp.isinf(weight)[:, None, None]


def _at(places: Int[Array, "B P *rest"], step: Int[Array, ""]) -> Int[Array, "B *rest"]:
    """What is asked at this place; zero beyond the last."""
    return jnp.take(places, step, axis=1, mode="fill", fill_value=0)


def _breaks_length(lines: UpperLine, step: Int[Array, ""], is_end: Bool[Array, " V"]) -> Int[Array, "B 1 V"]:
    """How many places each token would leave empty (the end), or add."""
    left = (jnp.asarray(lines.length) - step)[:, None, None]
    return jnp.where(is_end, jnp.maximum(left, 0), left <= 0).astype(jnp.int32)


def _breaks_punctuation(
    lines: UpperLine, step: Int[Array, ""], is_end: Bool[Array, " V"], is_mark: Bool[Array, " V"]
) -> Int[Array, "B 1 V"]:
    """How many marks would be missing (the end), or whether a token is a wrong one."""
    marks = jnp.asarray(lines.marks)
    missing = jnp.sum((marks > 0) & (jnp.arange(marks.shape[1]) >= step), axis=1)[:, None]
    mark = _at(marks, step)[:, None]
    wrong = jnp.where(mark > 0, jnp.arange(len(is_mark)) != mark, is_mark)
    return jnp.where(is_end, missing, wrong).astype(jnp.int32)[:, None]


def _in_upper(lines: UpperLine, vocab_size: int) -> Bool[Array, "B V"]:
    characters = jnp.asarray(lines.characters)
    sentence = jnp.arange(len(characters))[:, None]
    return jnp.zeros((len(characters), vocab_size), bool).at[sentence, characters].set(True)


def _breaks_tones(vocabulary: Vocabulary, lines: UpperLine, step: Int[Array, ""]) -> Bool[Array, "B V"]:
    tones, asked = jnp.asarray(vocabulary.tones), _at(jnp.asarray(lines.tones), step)[:, None]
    return (tones > 0) & ((tones & asked) != asked)


class _Earlier(NamedTuple):
    """What the characters of the lower lines so far mean for the next one."""

    used: Bool[Array, "B K V"]
    breaks_repetition: Bool[Array, "B K V"]
    begins_class: Bool[Array, "B K"]
    """No place of the next one's class has a character yet."""


def _earlier(vocabulary: Vocabulary, lines: UpperLine, history: Int[Array, "B K L"], step: Int[Array, ""]) -> _Earlier:
    tones, back = jnp.asarray(vocabulary.tones), jnp.asarray(lines.back)
    places = jnp.arange(history.shape[-1])
    beyond = jnp.zeros((len(back), max(0, len(places) - back.shape[1])), back.dtype)
    classes = places - jnp.concatenate([back, beyond], axis=1)[:, : len(places)]
    same_class = (classes == (step - _at(back, step))[:, None])[:, None]
    is_character = (tones[history] > 0) & (places < step)
    sentence = jnp.arange(history.shape[0])[:, None, None]
    hypothesis = jnp.arange(history.shape[1])[None, :, None]

    def occurrences(where: Bool[Array, "B K L"]) -> Int[Array, "B K V"]:
        nothing = jnp.zeros((*history.shape[:2], len(tones)), jnp.int32)
        return nothing.at[sentence, hypothesis, history].add(where.astype(jnp.int32))

    in_class, elsewhere = occurrences(is_character & same_class), occurrences(is_character & ~same_class)
    num_in_class = jnp.sum(is_character & same_class, axis=-1)
    return _Earlier(
        used=in_class + elsewhere > 0,
        breaks_repetition=(in_class != num_in_class[..., None]) | (elsewhere > 0),
        begins_class=num_in_class == 0,
    )


def _leaves_too_few(
    vocabulary: Vocabulary, lines: UpperLine, step: Int[Array, ""], free: Bool[Array, "B K V"]
) -> Bool[Array, "B K V"]:
    """Whether using up a character would leave a class that begins later without one."""
    is_kind = jnp.asarray(vocabulary.tones) == jnp.arange(4)[:, None]
    supply = jnp.stack([jnp.sum(free & kind, axis=-1) for kind in is_kind], axis=-1)
    needs = _at(jnp.asarray(lines.needs), step)[:, None]
    # Marks use up no characters.
    too_few = [jnp.logical_not(satisfiable(supply.at[..., kind].add(-1), needs)) for kind in (1, 2, 3)]
    return jnp.any(jnp.stack([one[..., None] & is_kind[kind] for kind, one in enumerate(too_few, start=1)]), axis=0)
