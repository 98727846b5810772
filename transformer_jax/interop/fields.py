"""Fields of the JSON files of other systems, checked; messages name file and field."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.errors import UserError

_LARGEST = 10_000_000
"""Of any size or count: more than any model has, and little enough to go through."""


def flag(path: Path, values: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false.

    Args:
        path: of the file, for messages.
        values: its content.
        name: of the field.
        default: where the field is not there.

    Raises:
        UserError: naming it, if it is neither.
    """
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise unlike(path, values, name, "true or false")
    return value


def whole(
    path: Path,
    values: Mapping[str, Any],
    name: str,
    default: int | None = None,
    *,
    smallest: int,
    below: int = _LARGEST,
) -> int:
    """A field that is a whole number; without a default it must be there.

    Raises:
        UserError: naming it, if it is none, or not from `smallest` to `below` - 1.
    """
    value = values.get(name, default)
    if type(value) is not int or not smallest <= value < below:
        raise unlike(path, values, name, f"a whole number from {smallest} to {below - 1}")
    return value


def number(path: Path, values: Mapping[str, Any], name: str, default: float, smallest: float, largest: float) -> float:
    """A field that is a number.

    Raises:
        UserError: naming it, if it is none, or out of its bounds.
    """
    value = values.get(name, default)
    if type(value) not in (int, float) or not smallest <= value <= largest:
        raise unlike(path, values, name, f"a number from {smallest:g} to {largest:g}")
    return float(value)


def unlike(path: Path, values: Mapping[str, Any], name: str, remedy: str) -> UserError:
    """The error for a field that is not there or not what it must be."""
    if name not in values:
        return UserError(f"{path} lacks the field {name}, which must be {remedy}; copy the file again from its origin.")
    shown = "null" if values[name] is None else reprlib.repr(values[name])
    return UserError(f"{path}: {name} is {shown}, but must be {remedy}; change the field, or name another model.")
