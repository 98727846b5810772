"""Runs beside each other: sorted, with what differs between their configs, and their curves in a picture."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from transformer_jax.experiments.runs import RunRecord, RunSummary, find_runs, read_run
from transformer_jax.system import UserError, flat_config, known_names
from transformer_jax.system.files import resolved
from transformer_jax.system.runtime import printable, show_error
from transformer_jax.tasks.registry import lower_is_better

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIELDS = tuple(field.name for field in dataclasses.fields(RunSummary) if field.name != "problems")
"""What `--sort` takes, besides the fields of configs."""


class Compared(NamedTuple):
    """A run among others."""

    name: str
    """What is left of its path without the folders that all share."""
    record: RunRecord
    summary: RunSummary
    config: Mapping[str, Any]
    """Fields of its config by path, such as "optim.lr", those of earlier releases as this release has them."""


def read_runs(folders: Sequence[str], report: Callable[[str], None] = show_error) -> list[RunRecord]:
    """The runs in these folders, each once; `report` is called with a sentence for each folder that can't be read.

    Raises:
        UserError: if a folder has none.
    """
    found = {resolved(path): path for folder in folders for path in find_runs(folder, report)}
    return [read_run(path) for path in found.values()]


def compare(records: Sequence[RunRecord], metric: str | None = None) -> list[Compared]:
    """Runs beside each other, by `metric` or each by its own.

    Raises:
        UserError: if no run has that metric.
    """
    known = list(dict.fromkeys(name for record in records for name in record.metrics()))
    if metric is not None and metric not in known:
        remedy = known_names(metric, known) if known else "no run has been evaluated yet."
        raise UserError(f"--metric is {metric!r}, a score that no run has; {remedy}")
    names = short_names([str(resolved(record.path)) for record in records])
    configs = flat_configs([record.config for record in records])
    return [
        Compared(name, record, record.summary(metric), config)
        for name, record, config in zip(names, records, configs, strict=True)
    ]


def short_names(paths: Sequence[str]) -> list[str]:
    """What is left of paths without the folders that all share."""
    parts = [PurePosixPath(path).parts for path in paths]
    above = zip(*(each[:-1] for each in parts), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda folders: len(set(folders)) == 1, above))
    return [printable("/".join(each[shared:]) or path) for each, path in zip(parts, paths, strict=True)]


def flat_configs(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fields by path, such as "optim.lr". Where runs of one task have different fields, earlier releases wrote some.

    Then all are as this release would read them: with fields moved and defaults added, which takes importing JAX.
    """
    flat = [flat_config(config) for config in configs]
    fields: dict[Any, set[str]] = {}
    for each in filter(None, flat):
        if fields.setdefault(str(each.get("task")), set(each)) != set(each):
            break
    else:
        return flat
    from transformer_jax.config import Config, upgraded

    defaults = {str(each.get("task")): Config(task=str(each.get("task"))).to_dict() for each in flat}
    return [
        flat_config(defaults[str(each.get("task"))]) | flat_config(upgraded(dict(config))) if each else {}
        for each, config in zip(flat, configs, strict=True)
    ]


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Fields of which some of these configs have different values; a task need not have the fields of others."""
    fields = dict.fromkeys(field for config in configs for field in config)
    return [
        field
        for field in fields
        if len({json.dumps(config[field], sort_keys=True) for config in configs if field in config}) > 1
    ]


def ordered(compared: Sequence[Compared], field: str) -> list[Compared]:
    """Sorted by a field of `RunSummary` or of the config: scores best first, else the smallest, the unknown last.

    Raises:
        UserError: if no run has the field.
    """
    known = dict.fromkeys((*FIELDS, *(name for run in compared for name in run.config)))
    if field not in known:
        raise UserError(f"--sort is {field!r}, which runs do not have; {_nearest(field, known)}")

    def key(run: Compared) -> tuple[bool, bool, int | float, str]:
        value = getattr(run.summary, field) if field in FIELDS else run.config.get(field)
        if not isinstance(value, int | float):
            return value is None, True, 0.0, str(value)
        is_score = field in ("best", "final")
        sign = -1 if is_score and not lower_is_better(run.summary.task or "", run.summary.metric) else 1
        return False, False, sign * value, ""

    return sorted(compared, key=key)


def _nearest(field: str, known: Mapping[str, None]) -> str:
    """The end of the sentence about a field that no run has: one of the same name in a group, or the nearest."""
    inside = [name for name in known if name.rpartition(".")[2] == field]
    return f"did you mean {' or '.join(inside)}?" if inside else known_names(field, known if "." in field else FIELDS)


def as_json(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """The summaries, each with `differs`: those fields of its config that are not the same in all runs."""
    fields = differences([run.config for run in compared])
    return [
        dataclasses.asdict(run.summary) | {"differs": {name: run.config[name] for name in fields if name in run.config}}
        for run in compared
    ]


def draw_curves(compared: Sequence[Compared]) -> "Figure":
    """The learning curves of the validation metric.

    Raises:
        UserError: if the runs go by several metrics, or none has been evaluated.
    """
    metrics = list(dict.fromkeys(run.summary.metric for run in compared))
    if len(metrics) > 1:
        raise UserError(f"--png draws one metric, but the runs have {', '.join(metrics)}; name one by --metric.")
    curves = {run.name: run.record.curve(metrics[0]) for run in compared}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        raise UserError(f"--png has nothing to draw, as no run has been evaluated for {metrics[0]}; drop it.")
    from transformer_jax.plots import learning_curves  # slow to import

    return learning_curves(curves, metric=metrics[0].replace("_", " "))
