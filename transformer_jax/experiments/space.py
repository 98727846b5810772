"""What a sweep tries: the points and ranges that `get_hyper(h)` of a config file gives."""

import difflib
import itertools
import math
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import config_file, from_config_dict
from transformer_jax.system import UserError, flat_config

Value = bool | int | float | str


@dataclass(frozen=True)
class Range:
    """Numbers to draw from, `low` and `high` included, evenly or, if `log`, evenly in their logarithm."""

    low: int | float
    high: int | float
    log: bool = False
    whole: bool = False
    """Integers only."""


@dataclass(frozen=True)
class Choices:
    """Values to draw from."""

    values: tuple[Value, ...]


Point = dict[str, Value | Range | Choices]
"""Fields to values, or to what their values are drawn from."""


class Hyper:
    """The argument of `get_hyper(h)`, whose methods make lists of points and combine them.

    Fields are paths such as "optim.lr"; "config.optim.lr" is the same.
    """

    def sweep(self, field: str, values: Sequence[Any]) -> list[Point]:
        """A point for each value: a list is tried whole."""
        _check_values(field, values)
        if not values:
            raise UserError(f"sweep of {field} has no values; give some.")
        return [{_path(field): value} for value in values]

    def uniform(self, field: str, low: int | float, high: int | float) -> list[Point]:
        """A point that draws a number from `low` to `high`."""
        return _drawn(field, Range(_number(field, low), _number(field, high)))

    def loguniform(self, field: str, low: int | float, high: int | float) -> list[Point]:
        """A point that draws a number from `low` to `high`, evenly in its logarithm; `low` is above 0."""
        return _drawn(field, Range(_number(field, low), _number(field, high), log=True))

    def integer(self, field: str, low: int | float, high: int | float) -> list[Point]:
        """A point that draws an integer from `low` to `high`, both included."""
        for value in (low, high):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"integer of {field} goes from {low!r} to {high!r}; give two integers.")
        return _drawn(field, Range(low, high, whole=True))

    def categorical(self, field: str, values: Sequence[Any]) -> list[Point]:
        """A point that draws one of these values."""
        _check_values(field, values)
        if len(values) < 2:
            raise UserError(f"categorical of {field} has {len(values)} values; give at least 2.")
        return [{_path(field): Choices(tuple(values))}]

    def product(self, sets: Sequence[Any]) -> list[Point]:
        """Each point of each list with each of the others: a grid."""
        return [_joined(points) for points in itertools.product(*_points(sets))]

    def zipit(self, sets: Sequence[Any]) -> list[Point]:
        """The first points of all lists together, then the second, and so on; the lists are equally long."""
        sets = _points(sets)
        if len({len(points) for points in sets}) > 1:
            lengths = ", ".join(str(len(points)) for points in sets)
            raise UserError(f"zipit has lists of {lengths} points; make them equally long.")
        return [_joined(points) for points in zip(*sets, strict=True)]

    def chainit(self, sets: Sequence[Any]) -> list[Point]:
        """The points of one list after those of another."""
        return [point for points in _points(sets) for point in points]


def load_points(argument: str) -> list[Point]:
    """The points of the `get_hyper` of a config, named as for `train`.

    Raises:
        UserError: if there is none, or it fails.
    """
    path = config_file(argument.partition(":")[0])
    try:
        get_hyper: Callable[[Hyper], Any] | None = runpy.run_path(path).get("get_hyper")
        if get_hyper is None:
            raise UserError(f"{path} has no function get_hyper(h), which says what to try; see docs/sweeps.md.")
        points = get_hyper(Hyper())
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    except Exception as error:  # the file is the user's own code, in which anything may fail
        raise UserError(f"{path}: get_hyper fails ({type(error).__name__}: {error}); mend it.") from error
    try:
        (points,) = _points([points])
    except UserError as error:
        raise UserError(f"{path}: get_hyper: {error}") from error
    return points


def check_points(points: Sequence[Point], config: ConfigDict) -> list[Point]:
    """The points with numbers of the types of the fields that they set.

    Raises:
        UserError: if a field is none, a value or the end of a range is not allowed there, or there are no points.
    """
    if not points or not all(points):
        raise UserError("get_hyper gives nothing to try; return what h.sweep and the like give.")
    checked = [{field: _typed(field, value, config) for field, value in point.items()} for point in points]
    kinds: dict[str, type[Any]] = {}
    for point in checked:
        for field, value in point.items():
            kind = type(value) if isinstance(value, Range | Choices) else Choices
            if kinds.setdefault(field, kind) is not kind:
                raise UserError(f"get_hyper has values and a range for {field}; give one or the other.")
    drawn = {field: {value for point in checked if isinstance(value := point.get(field), Choices)} for field in kinds}
    for field, choices in drawn.items():
        if len(choices) > 1 or (choices and any(_is_fixed(point.get(field)) for point in checked)):
            raise UserError(f"get_hyper draws {field} from different lists; use the same one everywhere.")
    for point in checked:
        for values in _corners(point):
            from_config_dict(with_values(config, values))
    return checked


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with these values of fields."""
    copy = ConfigDict(config.to_dict())
    with copy.ignore_type():  # `from_config_dict` checks, in sentences
        copy.update_from_flattened_dict(dict(values))
    return copy


def is_drawn(points: Sequence[Point]) -> bool:
    """Whether a value is drawn anywhere, so that one point gives many trials."""
    return any(isinstance(value, Range | Choices) for point in points for value in point.values())


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points, with ranges and choices as objects."""
    return [
        {field: asdict(value) if isinstance(value, Range | Choices) else value for field, value in point.items()}
        for point in points
    ]


def from_json(points: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Inverse of `to_json`."""

    def value_of(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return Choices(tuple(value["values"])) if "values" in value else Range(**value)

    return [{field: value_of(value) for field, value in point.items()} for point in points]


def _path(field: str) -> str:
    return field.removeprefix("config.")


def _drawn(field: str, drawn: Range) -> list[Point]:
    if drawn.low > drawn.high:
        raise UserError(f"the range of {field} goes from {drawn.low:g} to {drawn.high:g}; give the smaller end first.")
    if drawn.log and drawn.low <= 0:
        raise UserError(f"the range of {field} begins at {drawn.low:g}; loguniform needs one above 0.")
    return [{_path(field): drawn}]


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"the range of {field} ends at {value!r}; give numbers.")
    return float(value)


def _check_values(field: str, values: Sequence[Any]) -> None:
    if isinstance(values, str) or not all(isinstance(value, bool | int | float | str) for value in values):
        raise UserError(f"the values of {field} are {values!r}; give a list of numbers, names, or true and false.")
    if len(set(map(repr, values))) < len(values):
        raise UserError(f"the values of {field} have one twice: {', '.join(map(str, values))}; drop it.")


def _points(sets: Any) -> list[list[Point]]:
    """The lists of points, checked."""
    sets = list(sets) if isinstance(sets, list | tuple) else [sets]
    for points in sets:
        if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
            raise UserError(f"{points!r} is not a list of points; combine what h.sweep and the like give.")
    return sets


def _joined(points: Sequence[Point]) -> Point:
    joined: Point = {}
    for point in points:
        for field in point:
            if field in joined:
                raise UserError(f"{field} is set twice in one point; drop one.")
        joined |= point
    return joined


def _is_fixed(value: Any) -> bool:
    return value is not None and not isinstance(value, Range | Choices)


def _typed(field: str, value: Any, config: ConfigDict) -> Any:
    """The value for a field, an integer as a float where the field is one."""
    group: Any = config
    for part in field.split("."):
        keys = list(group) if isinstance(group, ConfigDict) else []
        if part not in keys:
            near = difflib.get_close_matches(field, flat_config(config.to_dict()), n=1)
            remedy = f"did you mean {near[0]}?" if near else "docs/configuration.md lists all."
            raise UserError(f"get_hyper sets {field}, which is not a field; {remedy}")
        group = group[part]
    if isinstance(group, ConfigDict | tuple):
        kind = "a group" if isinstance(group, ConfigDict) else "a list"
        raise UserError(f"get_hyper sets {field}, which is {kind}; sweep fields of one value.")
    if isinstance(value, Choices):
        return Choices(tuple(_typed(field, each, config) for each in value.values))
    if isinstance(value, Range):
        if isinstance(group, bool | str) or (isinstance(group, int) and not value.whole):
            needed = "h.integer" if isinstance(group, int) and not isinstance(group, bool) else "h.categorical"
            raise UserError(f"get_hyper draws {field} from a range of numbers; use {needed} for it.")
        return value
    return float(value) if isinstance(group, float) and type(value) is int else value


def _corners(point: Point) -> list[dict[str, Value]]:
    """Values of the point at both ends of its ranges, and with each of its choices."""
    first: dict[str, Value] = {}
    others: list[dict[str, Value]] = []
    for field, value in point.items():
        ends: list[Value]
        if isinstance(value, Range):
            ends = [value.low, value.high]
        else:
            ends = list(value.values) if isinstance(value, Choices) else [value]
        first[field] = ends[0]
        others += [{field: end} for end in ends[1:]]
    return [first, *({**first, **other} for other in others)]
