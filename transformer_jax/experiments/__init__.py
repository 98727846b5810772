"""Experiments as people run them: the commands `sweep`, `runs` and `info`, whose modules are imported late."""

import argparse
import contextlib
import json
import secrets
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from transformer_jax.system import UserError, config_name, finite, shipped_configs
from transformer_jax.system.runtime import Shown, show_error, stdout_bytes

_SAMPLERS = ("tpe", "random", "qmc")
_PRUNERS = ("none", "median", "hyperband")
_LAUNCHERS = ("process", "slurm", "local")


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
        help="describe a run or a model folder in full",
        description="Describe a run or a model folder in full: state, scores, sizes, data, config, versions, files. "
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
    from transformer_jax.experiments.compare import as_json, compare, draw_curves, ordered, read_runs
    from transformer_jax.experiments.tables import as_text

    if arguments.png is not None:
        from transformer_jax.plots import check_picture, save_picture  # slow to import

        check_picture(arguments.png, (".png",))
    compared = compare(read_runs(arguments.folders, _tell), arguments.metric)
    if arguments.sort is not None:
        compared = ordered(compared, arguments.sort)
    if arguments.png is not None:
        save_picture(arguments.png, draw_curves(compared))
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


def add_sweep(commands: Any) -> Any:
    """Add the subcommand `sweep`; returns its parser."""
    parser = commands.add_parser(
        "sweep",
        help="train with many configs, and find the best",
        description="Train with each of the configs that get_hyper(h) of a config file names: each a trial, with a run "
        "folder of its own in DIR/trials. Rerun the same command to go on with an interrupted sweep, or with more "
        "--trials.",
        epilog=f"Shipped configs: {', '.join(sorted(shipped_configs()))}.",
        example="transformer-jax sweep --config numerals --trials 8 --workers 2",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="NAME[:ARG]", help="a shipped config, or a file with get_config, get_hyper")
    parser.add_argument("--config.GROUP.FIELD", metavar="VALUE", help="override a field for all trials")
    parser.add_argument("--workdir", metavar="DIR", help="folder of the sweep [sweeps/NAME_OF_THE_CONFIG]")
    parser.add_argument("--trials", type=int, metavar="N", help="trials to make [one for each point of a grid]")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="trials at a time, each with its own GPUs, TPU chip or CPU cores [one for each GPU or chip, else 1]",
    )
    parser.add_argument("--metric", metavar="NAME", help="validation score to go by [training.metric of the config]")
    parser.add_argument("--sampler", choices=_SAMPLERS, default="tpe", help="how values are drawn from ranges [tpe]")
    parser.add_argument("--prune", choices=_PRUNERS, default="none", help="how poor trials are ended early [none]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws [0]")
    parser.add_argument(
        "--storage", metavar="URL", help="keep the study in this database, such as postgresql+psycopg://USER@HOST/NAME"
    )
    parser.add_argument(
        "--launcher",
        choices=_LAUNCHERS,
        default="process",
        help="process: child processes; slurm: jobs of Slurm; local: submitit's jobs on this machine [process]",
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of submitit, such as slurm_partition=gpu or timeout_min=600; may be given several times",
    )
    parser.add_argument("--report", metavar="DIR", help="only report on the sweep in DIR, which may be running")
    return parser


def start_sweep(arguments: argparse.Namespace, config: Any) -> None:
    """Run the sweep that the arguments describe, and report on it.

    Args:
        arguments: parsed.
        config: gives the `ConfigDict` that `--config` names, with its overrides.

    Raises:
        UserError: for mistakes in the arguments, the config or the folder.
    """
    from transformer_jax.experiments import launchers
    from transformer_jax.experiments.folder import Sweep, claim_sweep, read_sweep
    from transformer_jax.experiments.space import check_points, load_points
    from transformer_jax.experiments.study import Study, without_password
    from transformer_jax.experiments.sweep import run_sweep

    if arguments.report is not None:
        folder = Path(arguments.report)
        with contextlib.closing(Study(folder, read_sweep(folder), arguments.storage)) as opened:
            _report(opened)
        return
    if arguments.config is None:
        raise UserError("sweep needs --config, or --report DIR; name a config with get_hyper, such as numerals.")
    for option in ("trials", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}, but must be at least 1.")
    if arguments.slurm and arguments.launcher == "process":
        raise UserError("--slurm means nothing without --launcher slurm; give both.")
    name = config_name(arguments.config)
    folder = Path(arguments.workdir or Path("sweeps", name))
    base = config()
    points = check_points(load_points(arguments.config), base)
    if arguments.metric is not None:
        base.training.metric = arguments.metric
    wanted = Sweep(
        config=base.to_dict(),
        points=points,
        metric=base.training.metric,
        minimize=_is_minimized(base),
        sampler=arguments.sampler,
        prune=arguments.prune,
        seed=arguments.seed,
        name=f"{name}-{secrets.token_hex(4)}",
        storage=without_password(arguments.storage),
    )
    trials = wanted.default_trials(arguments.trials, folder)
    there = claim_sweep(folder, wanted)
    if arguments.launcher == "process":
        environments = launchers.worker_environments(arguments.workers, launchers.local_devices())
        launcher: launchers.Launcher = launchers.Processes(folder, arguments.storage, environments)
    else:
        parameters = dict(_parameter(each) for each in arguments.slurm)
        launcher = launchers.Submitted(
            folder, arguments.storage, arguments.workers or 1, arguments.launcher, parameters
        )
    with contextlib.closing(Study(folder, there, arguments.storage)) as opened:
        run_sweep(opened, launcher, trials)
        _report(opened)


def _report(study: Any) -> None:
    from rich.console import Console

    from transformer_jax.experiments.report import write_report
    from transformer_jax.experiments.sweep import table_of
    from transformer_jax.system.runtime import show

    made = study.trials()
    console = Console()
    console.print(table_of(study, made, len(made)))
    for line in write_report(study):
        show(line)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"--slurm is {text!r}, but must be KEY=VALUE, such as slurm_partition=gpu.")
    return name, int(value) if value.isdecimal() else value


def _is_minimized(config: Any) -> bool:
    """Whether lower values of the metric are better.

    Raises:
        UserError: if the task has no such metric.
    """
    from transformer_jax.config import from_config_dict
    from transformer_jax.tasks.registry import lower_is_better, task_class

    task, metric = task_class(from_config_dict(config)), config.training.metric
    metrics = getattr(task, "metrics", None)
    if isinstance(metrics, tuple) and metric not in metrics:
        raise UserError(f"--metric is {metric!r}, but must be one of {', '.join(metrics)}.")
    return lower_is_better(config.task, metric)
