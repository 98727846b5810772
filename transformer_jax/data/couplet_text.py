"""Couplets as text: how they stand in files, and which are left out of the training data."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from transformer_jax.data.text import read_lines, read_pairs
from transformer_jax.errors import UserError
from transformer_jax.paths import AnyPath

Couplet = tuple[str, str]
"""Upper and lower line, without spaces."""


class Fit(NamedTuple):
    """Couplets to learn from, and how many were left out for which reason."""

    couplets: list[Couplet]
    blank: int
    unequal: int
    blocked: int


def without_spaces(line: str) -> str:
    """A line without white space of any kind."""
    return "".join(line.split())


def read_couplets(upper_path: str | AnyPath, lower_path: str | AnyPath) -> list[Couplet]:
    """Read two files aligned line by line; spaces between characters are left out.

    Raises:
        UserError: if a file cannot be read or has no lines, or their line counts differ.
    """
    pairs = read_pairs(upper_path, lower_path)
    if not pairs:
        raise UserError(f"{upper_path} and {lower_path} have no lines; name files with couplets.")
    return [(without_spaces(upper), without_spaces(lower)) for upper, lower in pairs]


def read_blocklist(path: str | AnyPath) -> list[str]:
    """Words of a file, one a line; what follows a # is a comment.

    Raises:
        UserError: if the file cannot be read or is not UTF-8.
    """
    words = (without_spaces(line.partition("#")[0]) for line in read_lines(path))
    return [word for word in words if word]


def leave_out_unfit(couplets: Iterable[Couplet], blocklist: Iterable[str] = ()) -> Fit:
    """Leave out couplets with a blank line, lines of unequal length, or a word of the blocklist in either line."""
    words = [re.escape(word) for word in blocklist]
    has_blocked_word = re.compile("|".join(words)).search if words else lambda text: None
    fit: list[Couplet] = []
    blank = unequal = blocked = 0
    for upper, lower in couplets:
        if not upper or not lower:
            blank += 1
        elif len(upper) != len(lower):
            unequal += 1
        elif has_blocked_word(upper) or has_blocked_word(lower):
            blocked += 1
        else:
            fit.append((upper, lower))
    return Fit(fit, blank, unequal, blocked)
