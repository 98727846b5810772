"""The rules as constraints on what may come next in a search."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.couplets.plan import UpperLine, Weights, satisfiable
from transformer_jax.couplets.vocabulary import Vocabulary
from transformer_jax.data.tokenizers import EOS
from transformer_jax.decoding import LogitsProcessor


def keep_rules(vocabulary: Vocabulary, lines: UpperLine) -> LogitsProcessor:
    """Hold the lower lines of a batch to the rules of their plans, place by place.

    What breaks a hard rule is forbidden, and with repetition hard also what would leave too few characters for the
    places that follow. What breaks a weighted rule costs its weight. A rule that is off changes nothing.

    Args:
        vocabulary: of the tokens.
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
    # Marks are no kind of character: they use nothing up.
    too_few = [jnp.logical_not(satisfiable(supply.at[..., kind].add(-1), needs)) for kind in (1, 2, 3)]
    return jnp.any(jnp.stack([one[..., None] & is_kind[kind] for kind, one in enumerate(too_few, start=1)]), axis=0)
