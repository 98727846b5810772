"""Experiments as people run them: the commands `runs` and `info`, whose modules are imported when they are used."""

import argparse
import json
import shutil
import sys
from functools import partial
from typing import Any

from transformer_jax.system import finite
from transformer_jax.system.output import write_output
from transformer_jax.system.runtime import Shown, show_error, stdout_bytes


def add_commands(commands: Any) -> None:
    """Add the subcommands `runs` and `info`."""
    _add_runs(commands)
    _add_info(commands)


def _add_runs(commands: Any) -> None:
    parser = commands.add_parser(
        "runs",
        help="compare runs: state, scores, configs, learning curves",
        description="Show a table of runs, what differs between their configs, and their learning curves. Runs may be "
        "at work meanwhile. Runs that go by different metrics have a table each.",
        epilog="FIELD: name a column of --json, such as best, step, minutes or tokens_per_second, or a field of the "
        "config, such as optim.lr. Scores are sorted best first, everything else upwards.",
        example="transformer-jax runs runs/a runs/b --sort best --png curves.png",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_runs)
    parser.add_argument(
        "folders", nargs="*", default=["runs"], metavar="DIR", help="a run, or a folder of runs at any depth [runs]"
    )
    parser.add_argument("--metric", metavar="NAME", help="score to compare by, such as loss [that of each config]")
    sort = parser.add_argument("--sort", metavar="FIELD", help="sort by this [by folder]")
    sort.completer = _fields
    parser.add_argument("--png", metavar="FILE", help="also draw the curves of the metric into a picture")
    parser.add_argument("--json", action="store_true", help="print a JSON array with an object for each run instead")


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="tell all about a run or a model folder",
        description="Tell all about a run or a model folder: state, scores, sizes, data, config, versions, files. "
        "Parameters are not loaded.",
        example="transformer-jax info runs/numerals",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_info)
    parser.add_argument("folder", metavar="DIR", help="a run or a model folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead, with every field")


def _fields(**_: Any) -> list[str]:
    from transformer_jax.experiments.compare import FIELDS

    return list(FIELDS)


def _runs(arguments: argparse.Namespace) -> None:
    from transformer_jax.experiments.compare import as_json, check_picture, compare, draw_curves, ordered, read_runs
    from transformer_jax.experiments.tables import as_text

    if arguments.png is not None:
        check_picture(arguments.png)
    compared = compare(read_runs(arguments.folders, _tell), arguments.metric)
    if arguments.sort is not None:
        compared = ordered(compared, arguments.sort)
    if arguments.png is not None:
        write_output(arguments.png, draw_curves(compared))
    for problem in (problem for run in compared for problem in run.summary.problems):
        _tell(problem)
    _write(as_json(compared) if arguments.json else partial(as_text, compared))


def _info(arguments: argparse.Namespace) -> None:
    from transformer_jax.experiments.info import as_text, describe

    found = describe(arguments.folder)
    for problem in found["problems"]:
        _tell(problem)
    _write(found if arguments.json else partial(as_text, found))


def _tell(problem: str) -> None:
    show_error(f"transformer-jax: {problem}")


def _write(content: Any) -> None:
    """Write what a function makes for the width of the terminal, or anything else as JSON."""
    if callable(content):
        text = content(shutil.get_terminal_size((80, 24)).columns, is_terminal=Shown(sys.stdout).isatty())
    else:
        text = json.dumps(finite(content), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    stdout_bytes(text.encode("utf-8", "backslashreplace"))
