"""What everything stands on: the user error, ranges of options, files, the runtime, and cooperating processes.

The table of ranges is the annotations of the frozen dataclasses: `lr: Annotated[float, Range(above=0)] = 1.0`. Each
calls `check_fields` when it is made, so configs, library calls and command-line options are checked alike.
"""

import difflib
import importlib.metadata
import ipaddress
import math
import numbers
import struct
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Union

LARGEST_INT = 2**31 - 1
"""Largest number in an int32, and the largest whole number of any field without a bound of its own."""
LARGEST_FLOAT = 3.4e38
"""The same for float32."""


class UserError(Exception):
    """A mistake in a path, config, file or text, reported in one sentence.

    The message names the file, line or field and the remedy. Command-line programs print it without a traceback and
    exit with status 2.
    """

    def __init__(self, message: str) -> None:
        """The message becomes one line, whatever characters the name of a file or field has."""
        super().__init__(" ".join(message.splitlines()))


class ResumableError(UserError):
    """What was done so far is intact; the same command resumes once the cause is mended."""


class FieldError(UserError):
    """A field that is out of its range, of the wrong type, or contradicts another."""

    def __init__(
        self, name: str, value: Any, remedy: str, other: str = "", *, where: Callable[[str], str] = str
    ) -> None:
        """Make the sentence.

        Args:
            name: the field.
            value: its value.
            remedy: what it must be; `{other}` stands for the name of another field.
            other: that field.
            where: how fields are called, such as "config.optim.{}".format.
        """
        self._parts = name, value, remedy, other
        remedy = remedy.replace("{other}", where(other)) if other else remedy
        super().__init__(f"{where(name)} is {value!r}, but must be {remedy}.")

    def named(self, where: Callable[[str], str]) -> "FieldError":
        """The same error with its fields called as they are elsewhere, such as options of a command."""
        return FieldError(*self._parts, where=where)


class LineError(UserError):
    """One of several texts that cannot be done."""

    def __init__(self, number: int, reason: str, what: str = "Line") -> None:
        """Make the sentence, such as: Line 3 is blank; leave it out.

        Args:
            number: the text's, from 1.
            reason: what is wrong and the remedy: the rest of the sentence.
            what: what texts are called.
        """
        self.number = number
        self.reason = reason
        self._what = what
        super().__init__(f"{what} {number:,} {reason}")

    def numbered(self, number: int) -> "LineError":
        """The same error of the text as it is numbered elsewhere, such as in the file that it comes from."""
        return type(self)(number, self.reason, self._what)


class BlankLineError(LineError):
    """A text that shows nothing, where a model needs one."""


class NotNumbersError(UserError):
    """The outputs of a model are NaN."""

    def __init__(self) -> None:
        super().__init__("The model's probabilities are not numbers; its parameters must be damaged.")


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`, both included, strictly between `above` and `below`, or equal to `also`.

    NaN and infinities are in no range, nor are numbers too large for 32 bits. What float32 rounds to `above` or `below`
    is not between them.
    """

    least: int | float | None = None
    most: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None
    also: int | float | None = None

    def __contains__(self, value: Any) -> bool:
        if value == self.also:
            return True
        is_whole = isinstance(value, numbers.Integral)
        if not abs(value) <= (LARGEST_INT if is_whole and self.most is None else LARGEST_FLOAT):  # NaN too
            return False
        rounded = value if is_whole else struct.unpack("f", struct.pack("f", value))[0]
        return bool(
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or rounded > self.above)
            and (self.below is None or rounded < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            between = f"from {_number(self.least)} to {_number(self.most)}"
        else:
            bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
            between = " and ".join(f"{word} {_number(bound)}" for word, bound in bounds.items() if bound is not None)
        return between if self.also is None else f"{_number(self.also)}, or {between}"

    def remedy(self, value: Any) -> str:
        """What a number that is not in the range must be instead."""
        bounded = self.most is not None or self.below is not None
        if bounded or abs(value) <= LARGEST_INT:
            return str(self)
        return f"{self}, and finite" if isinstance(value, float) else f"{self} and at most {LARGEST_INT:,}"


@dataclass(frozen=True, init=False)
class Choice:
    """One of these names."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def __contains__(self, value: Any) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return " or ".join(self.names) if len(self.names) == 2 else f"one of {', '.join(self.names)}"

    def remedy(self, value: Any) -> str:
        """What a name that is not among these must be instead."""
        return str(self)


Positive = Annotated[int, Range(1)]
NotNegative = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Random keys are made of 32 bits of the seed, whatever `jax_enable_x64` says."""
DropoutRate = Annotated[float, Range(0, 0.99)]
Fraction = Annotated[float, Range(0, below=1)]
"""A part of a whole, or the decay of a moving average."""

_NUMBERS = {int: numbers.Integral, float: numbers.Real}


def check_fields(values: object, where: Callable[[str], str] = str) -> None:
    """Refuse a dataclass with a value that is not of its field's type, or not in its range.

    NumPy's numbers become Python's, which JSON can hold.

    Raises:
        FieldError: naming the field, called `where(name)`.
    """
    kind: Any = type(values)
    for name, hint in field_types(kind).items():
        given = getattr(values, name)
        if (value := _plain(given)) is not given:
            object.__setattr__(values, name, value)
        check_value(name, value, hint, where)


def _plain(value: Any) -> Any:
    """The value itself, or with Python's numbers instead of NumPy's."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool | int):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, tuple) and any(_plain(item) is not item for item in value):
        return tuple(map(_plain, value))
    return value


def check_value(name: str, value: Any, hint: Any, where: Callable[[str], str] = str) -> None:
    """Refuse a value that is not of the type `hint`, such as `Annotated[int, Range(1)]`; see `check_fields`."""
    base, *rules = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    parts = typing.get_args(base)
    if typing.get_origin(base) in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        return check_value(name, value, next(part for part in parts if part is not type(None)), where)
    if typing.get_origin(base) is tuple and isinstance(value, tuple):
        for item in value:
            check_value(name, item, parts[0], where)
        return None
    if base in (int, float, bool, str):
        fits = isinstance(value, _NUMBERS.get(base, base)) and (base is bool or not isinstance(value, bool))
        if not fits:
            raise FieldError(name, value, f"of type {base.__name__}", where=where)
    for rule in rules:
        if isinstance(rule, Range | Choice) and value not in rule:
            raise FieldError(name, value, rule.remedy(value), where=where)
    return None


@lru_cache
def field_types(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def package_version() -> str:
    """The release that is installed, for what it writes."""
    try:
        return importlib.metadata.version("transformer-jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package: name to file. In a checkout, they are in `configs/` beside it."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    folder = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def finite(value: Any) -> Any:
    """The value, however nested, with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested groups by path, as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_config(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def config_name(argument: str) -> str:
    """What a run or a sweep of a config is called: multi30k-de-en for `multi30k:de-en`."""
    file, _, choice = argument.partition(":")
    return "-".join(filter(None, [Path(file).stem, choice]))


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of the sentence about an unknown name: the nearest of the known ones, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches servers that listen at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
