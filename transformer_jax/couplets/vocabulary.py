"""What the tokens of a vocabulary are to the rules: characters with their tones, marks, or neither."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int

from transformer_jax.couplets.judge import is_mark
from transformer_jax.couplets.tones import tone
from transformer_jax.data.tokenizers import CharTokenizer, Tokenizer
from transformer_jax.errors import UserError

_NUM_SPECIAL = 4


class Vocabulary(NamedTuple):
    """Two tables over the tokens; special tokens and white space are in neither."""

    tones: Int[Array | np.ndarray, " V"]
    """The `Tone` of a character; 0 for what is none."""
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
    pieces = [tokenizer.piece(token) for token in range(_NUM_SPECIAL, tokenizer.vocab_size)]
    marks = [is_mark(piece) for piece in pieces]
    tones = [0 if mark else int(tone(piece)) for piece, mark in zip(pieces, marks, strict=True)]
    none = [0] * _NUM_SPECIAL
    visible = [mark and piece.isprintable() and not piece.isspace() for piece, mark in zip(pieces, marks, strict=True)]
    return Vocabulary(np.array(none + tones, np.int32), np.array(none + visible, bool))
