"""Runs on a terminal: a table of them, what differs between their configs, and learning curves of braille dots."""

import io
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_jax.experiments.compare import Compared, differences
from transformer_jax.system.runtime import printable
from transformer_jax.tasks.registry import lower_is_better

_SHORTEST_NAME, _LONGEST_NAME, _LONGEST_VALUE, _LONGEST_WORD = 6, 20, 20, 9  # columns of a terminal
_PANEL_LINES = 12
"""The curves of all runs together take about as many lines, but at least one each and at most `_TALLEST`."""
_TALLEST = 4
_NOTHING = "–"


def as_text(compared: Sequence[Compared], width: int, *, is_terminal: bool = False) -> str:
    """The table, the differences and the curves, for each metric on its own, in lines of at most `width` columns."""
    groups: dict[str, list[Compared]] = {}
    parts: list[Any] = []
    for run in compared:
        groups.setdefault(run.summary.metric, []).append(run)
    for metric, runs in groups.items():
        tables = [
            _summary_table(metric, runs, width),
            *_difference_tables(runs, width),
            _curve_table(metric, runs, width),
        ]
        parts += filter(None, tables)
    return rendered(parts, width, is_terminal=is_terminal)


def rendered(parts: Iterable[Any], width: int, *, is_terminal: bool = False) -> str:
    """What rich prints of some parts, with a blank line between them; with colours and bold text on a terminal."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=is_terminal, highlight=False, legacy_windows=False)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())


def _grid(rows: Sequence[Sequence[str]], *, left: int = 1, leading: int = 0, bold: Sequence[int] = ()) -> Any:
    """A table without lines, in which nothing is cut off.

    Args:
        rows: heads, then cells, any of several lines.
        left: number of columns that are aligned left; the others are of numbers.
        leading: blank lines between rows.
        bold: numbers of the rows to emphasize, from 0, heads excluded.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", leading=leading)
    for number, head in enumerate(rows[0]):
        justify: Any = "left" if number < left else "right"
        table.add_column(Text(printable(head)), justify=justify, no_wrap=True, vertical="middle")
    for number, row in enumerate(rows[1:]):
        table.add_row(*(Text(printable(cell)) for cell in row), style="bold" if number in bold else None)
    return table


def _width(cell: str) -> int:
    return max(map(cell_len, cell.split("\n")))


def _summary_table(metric: str, runs: Sequence[Compared], width: int) -> Any:
    sign = 1 if lower_is_better(runs[0].summary.task or "", metric) else -1
    scores = [math.inf if run.summary.best is None else sign * run.summary.best for run in runs]
    leader = min(scores) if len(runs) > 1 else math.nan
    bold = [number for number, score in enumerate(scores) if math.isfinite(score) and score == leader]
    words = [shortened(word, _LONGEST_WORD) for word in metric.split("_")]
    rows = [["state", "step", "\n".join(words), "at step", "final", "minutes", "tokens/s"]]
    for _, _, run, _ in runs:
        of_all = "" if run.num_steps is None else f"/{_count(run.num_steps)}"
        rows.append(
            [
                run.state,
                _count(run.step) + of_all,
                rounded(run.best),
                _NOTHING if run.best_step is None else _count(run.best_step),
                rounded(run.final),
                _NOTHING if run.minutes is None else f"{run.minutes:,.{1 if run.minutes < 1000 else 0}f}",
                _NOTHING if run.tokens_per_second is None else _speed(run.tokens_per_second),
            ]
        )
    left = width - sum(2 + max(map(_width, column)) for column in zip(*rows, strict=True))
    names = ["run", *(shortened(run.name, max(_SHORTEST_NAME, left)) for run in runs)]
    return _grid([[name, *row] for name, row in zip(names, rows, strict=True)], left=2, bold=bold)


def _count(steps: int) -> str:
    """Such as 2,500 or 100k."""
    return f"{steps // 1000:,}k" if steps >= 10_000 and steps % 1000 == 0 else f"{steps:,}"


def _speed(tokens: float) -> str:
    """Such as 12,345 or 1,235k."""
    return f"{tokens:,.0f}" if tokens < 1e6 else f"{tokens / 1000:,.0f}k"


def _difference_tables(runs: Sequence[Compared], width: int) -> Iterator[Any]:
    """Tables of the fields that differ: a row for each run, or for each field if these are more."""
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
        about = f"{rounded(scale[0])} to {rounded(scale[1])}, {_count(end)} steps"
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


def rounded(value: float | None) -> str:
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
    text = printable(text).replace("\n", "\\n")
    if cell_len(text) <= width:
        return text
    kept = width - 1
    while cell_len(cut := f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}") > width:
        kept -= 1
    return cut
