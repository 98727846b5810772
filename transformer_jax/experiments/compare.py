"""The command `runs`: a table of runs, what differs between their configs, and their learning curves."""

import argparse
import dataclasses
import io
import itertools
import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from transformer_jax.experiments.runs import RunRecord, RunSummary, find_runs, read_run
from transformer_jax.system import UserError, finite, known_names
from transformer_jax.system.files import resolved
from transformer_jax.system.output import Output, write_output
from transformer_jax.system.runtime import Shown, printable, show_error, stdout_bytes
from transformer_jax.tasks.registry import lower_is_better

FIELDS = tuple(field.name for field in dataclasses.fields(RunSummary) if field.name != "problems")
"""What `--sort` takes, besides the fields of configs."""
_SHORTEST_NAME, _LONGEST_NAME, _LONGEST_VALUE = 8, 20, 20  # columns of a terminal
_PANEL_LINES = 12
"""The curves of all runs together take about as many lines, but at least one each and at most `_TALLEST`."""
_TALLEST = 4
_NOTHING = "–"


class Compared(NamedTuple):
    """A run among others."""

    name: str
    """What is left of its path without the folders that all share."""
    record: RunRecord
    summary: RunSummary
    config: Mapping[str, Any]
    """Fields of its config by path, such as "optim.lr", those of earlier releases as this release has them."""


def run_command(arguments: argparse.Namespace) -> None:
    """Run `transformer-jax runs`.

    Raises:
        UserError: if there is no run, or no run has what an option names.
    """
    if arguments.png is not None:
        _check_png(arguments.png)
    records = read_runs(arguments.folders)
    compared = compare(records, arguments.metric or "")
    if arguments.sort:
        compared = ordered(compared, arguments.sort)
    for problem in (problem for run in compared for problem in run.record.problems):
        show_error(f"transformer-jax: {problem}")
    if arguments.png is not None:
        write_output(arguments.png, learning_curves(compared))
    if arguments.json:
        content = json.dumps(finite(as_json(compared)), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    else:
        width = shutil.get_terminal_size((80, 24)).columns
        content = as_text(compared, width, is_terminal=Shown(sys.stdout).isatty())
    stdout_bytes(content.encode("utf-8", "backslashreplace"))


def read_runs(folders: Sequence[str]) -> list[RunRecord]:
    """The runs in these folders, each once.

    Raises:
        UserError: if a folder has none.
    """
    found = {resolved(path): path for folder in folders for path in find_runs(folder, show_error)}
    return [read_run(path) for path in found.values()]


def compare(records: Sequence[RunRecord], metric: str = "") -> list[Compared]:
    """Runs beside each other, by `metric` or each by its own.

    Raises:
        UserError: if no run has that metric.
    """
    known = list(dict.fromkeys(name for record in records for name in record.metrics()))
    if metric and metric not in known:
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


def flat_config(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested groups by path, as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat_config(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


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
        raise UserError(f"--sort is {field!r}, which is no field of runs; {_nearest(field, known)}")

    def key(run: Compared) -> tuple[bool, bool, float, str]:
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


# The picture.


def _check_png(path: str) -> None:
    if not path.lower().endswith(".png"):
        raise UserError(f"--png is {path}, but must end in .png.")
    Output(path)


def learning_curves(compared: Sequence[Compared]) -> bytes:
    """The curves of the validation metric, as a PNG.

    Raises:
        UserError: if the runs go by several metrics, or none has been evaluated.
    """
    import importlib

    metrics = list(dict.fromkeys(run.summary.metric for run in compared))
    if len(metrics) > 1:
        raise UserError(f"--png draws one metric, but the runs have {', '.join(metrics)}; name one by --metric.")
    curves = {run.name: run.record.curve(metrics[0]) for run in compared}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    if not curves:
        raise UserError(f"--png has nothing to draw, as no run has been evaluated for {metrics[0]}; drop it.")
    plots = importlib.import_module("transformer_jax.plots")  # slow to import
    content = io.BytesIO()
    plots.learning_curves(curves, ylabel=metrics[0].replace("_", " ")).savefig(content, format="png")
    return content.getvalue()


# The terminal.


def as_text(compared: Sequence[Compared], width: int, *, is_terminal: bool = False) -> str:
    """The table, the differences and the curves, for each metric on its own, in lines of at most `width` columns."""
    from rich.console import Console

    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=is_terminal, highlight=False, legacy_windows=False)
    groups: dict[str, list[Compared]] = {}
    for run in compared:
        groups.setdefault(run.summary.metric, []).append(run)
    for metric, runs in groups.items():
        tables = [
            _summary_table(metric, runs, width),
            *_difference_tables(runs, width),
            _curve_table(metric, runs, width),
        ]
        for table in filter(None, tables):
            console.print(table)
            console.print()
    lines = written.getvalue().rstrip().splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _grid(rows: Sequence[Sequence[str]], *, left: int = 1, leading: int = 0, bold: Sequence[int] = ()) -> Any:
    """A table without lines, in which nothing is cut off.

    Args:
        rows: heads, then cells, any of several lines.
        left: number of columns that are aligned left; the others are of numbers.
        leading: blank lines between rows.
        bold: numbers of the rows to emphasize, from 0, heads excluded.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", leading=leading)
    for number, head in enumerate(rows[0]):
        justify: Any = "left" if number < left else "right"
        table.add_column(Text(printable(head)), justify=justify, no_wrap=True, vertical="middle")
    for number, row in enumerate(rows[1:]):
        table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if number in bold else None)
    return table


def _width(cell: str) -> int:
    from rich.cells import cell_len

    return max(map(cell_len, cell.split("\n")))


def _summary_table(metric: str, runs: Sequence[Compared], width: int) -> Any:
    sign = 1 if lower_is_better(runs[0].summary.task or "", metric) else -1
    scores = [math.inf if run.summary.best is None else sign * run.summary.best for run in runs]
    leader = min(scores) if len(runs) > 1 else math.nan
    bold = [number for number, score in enumerate(scores) if math.isfinite(score) and score == leader]
    rows = [["state", "step", metric.replace("_", "\n"), "at step", "final", "minutes", "tokens/s"]]
    for _, _, run, _ in runs:
        of_all = "" if run.num_steps is None else f"/{_count(run.num_steps)}"
        rows.append(
            [
                run.state,
                _count(run.step) + of_all,
                number(run.best),
                _NOTHING if run.best_step is None else _count(run.best_step),
                number(run.final),
                _NOTHING if run.minutes is None else f"{run.minutes:,.1f}",
                _NOTHING if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}",
            ]
        )
    left = width - sum(2 + max(map(_width, column)) for column in zip(*rows, strict=True))
    names = ["run", *(shortened(run.name, max(_SHORTEST_NAME, left)) for run in runs)]
    return _grid([[name, *row] for name, row in zip(names, rows, strict=True)], left=2, bold=bold)


def _count(steps: int) -> str:
    """Such as 2,500 or 100k."""
    return f"{steps // 1000:,}k" if steps >= 10_000 and steps % 1000 == 0 else f"{steps:,}"


def _difference_tables(runs: Sequence[Compared], width: int) -> Iterator[Any]:
    """Tables of the fields that differ: a row for each run, or for each field if these are more."""
    from rich.text import Text

    known = [run for run in runs if run.config]
    fields = differences([run.config for run in known])
    if not fields:
        if len(known) > 1:
            yield Text("The configs do not differ.")
        return
    names = [shortened(run.name, _LONGEST_NAME) for run in known]
    values = [[_value(run.config[field]) if field in run.config else "" for field in fields] for run in known]
    if len(fields) > len(known):
        rows = [
            ["", *names],
            *([field, *cells] for field, cells in zip(fields, zip(*values, strict=True), strict=True)),
        ]
    else:
        heads = [field.replace(".", ".\n") for field in fields]
        rows = [["run", *heads], *([name, *cells] for name, cells in zip(names, values, strict=True))]
    for block in _blocks(rows, width):
        yield _grid(block, left=len(block[0]))


def _blocks(rows: Sequence[Sequence[str]], width: int) -> Iterator[list[list[str]]]:
    """Split a table that is too wide into several, each with the first column."""
    widths = [2 + max(map(_width, column)) for column in zip(*rows, strict=True)]
    chosen: list[int] = []
    for number in range(1, len(widths)):
        if chosen and widths[0] + sum(widths[each] for each in (*chosen, number)) > width + 2:
            yield [[row[0], *(row[each] for each in chosen)] for row in rows]
            chosen = []
        chosen.append(number)
    yield [[row[0], *(row[each] for each in chosen)] for row in rows]


def _curve_table(metric: str, runs: Sequence[Compared], width: int) -> Any:
    """Curves of the validation metric and the training loss, on the same scales for all runs; None without any."""
    task = runs[0].summary.task or ""
    shown = []
    for name, kind, part in ((metric, "evaluation", "validation"), ("loss", "train", "training")):
        curves = [run.record.curve(name, kind) for run in runs]
        if any(steps for steps, _ in curves):
            shown.append((f"{part} {name.replace('_', ' ')}", curves, lower_is_better(task, name)))
    if not shown:
        return None
    drawn_runs = [number for number in range(len(runs)) if any(curves[number][0] for _, curves, _ in shown)]
    names = [shortened(runs[number].name, _LONGEST_NAME) for number in drawn_runs]
    panel = max(8, (width - max(map(_width, names))) // len(shown) - 3)
    height = max(1, min(_TALLEST, _PANEL_LINES // len(names)))
    columns = [["", *names]]
    for title, curves, falls in shown:
        scale = _scale([value for _, values in curves for value in values], falls=falls)
        end = max(steps[-1] for steps, _ in curves if steps)
        about = f"{number(scale[0])} to {number(scale[1])}, {_count(end)} steps"
        plots = [plot(*curves[each], panel, height, end=end, scale=scale) for each in drawn_runs]
        columns.append([f"{shortened(title, panel)}\n{shortened(about, panel)}", *plots])
    return _grid(list(zip(*columns, strict=True)), left=len(columns), leading=height > 1)


def _scale(values: Sequence[float], *, falls: bool) -> tuple[float, float]:
    """The range of values to draw. Of those that fall without bound above, outliers are left out: a run diverges."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if falls and len(values) > 3:
        first, _, third = statistics.quantiles(values)
        high = min(high, third + 5 * (third - first)) if third > first else high
    return low, high


_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the dots of a braille character, by row and column."""


def plot(
    steps: Sequence[int], values: Sequence[float], width: int, height: int, *, end: int, scale: tuple[float, float]
) -> str:
    """A curve as lines of braille characters, of 2 × 4 dots each, beside an axis.

    Args:
        steps: ascending.
        values: as many; those beyond the scale are drawn at its edge.
        width: characters in a line.
        height: number of lines.
        end: the step at the right edge; 0 is at the left.
        scale: values at the lower and the upper edge.
    """
    low, high = scale
    columns, rows = 2 * width - 1, 4 * height - 1
    places = [
        (round(step / max(end, 1) * columns), round((high - min(max(value, low), high)) / ((high - low) or 1.0) * rows))
        for step, value in zip(steps, values, strict=True)
    ]
    cells = [[0] * width for _ in range(height)]
    for (x, y), (next_x, next_y) in zip(places, [*places[1:], *places[-1:]], strict=True):
        length = max(abs(next_x - x), abs(next_y - y), 1)
        for part in range(length + 1):
            column, row = (round(start + (stop - start) * part / length) for start, stop in ((x, next_x), (y, next_y)))
            cells[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
    return "\n".join("│" + "".join(chr(0x2800 + cell) for cell in line) for line in cells)


def number(value: float | None) -> str:
    """Four significant digits, with separators of thousands."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _value(value: Any) -> str:
    """A value of a config in a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if value == "":
        return "''"
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return shortened(str(value), _LONGEST_VALUE)


def shortened(text: str, width: int) -> str:
    """The text, its middle left out if it takes more columns of a terminal."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    kept = width - 1
    while cell_len(cut := f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}") > width:
        kept -= 1
    return cut
