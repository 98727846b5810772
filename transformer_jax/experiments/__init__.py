"""Many runs: the command `sweep`, and the comparison of runs.

The modules beside this one are imported when they are first used.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from transformer_jax.system import UserError, shipped_configs

_SAMPLERS = ("tpe", "random", "qmc")
_PRUNERS = ("none", "median", "hyperband")
_LAUNCHERS = ("process", "slurm", "local")


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
    from transformer_jax.experiments import launchers, study
    from transformer_jax.experiments.space import check_points, load_points
    from transformer_jax.experiments.sweep import run_sweep

    if arguments.report is not None:
        folder = Path(arguments.report)
        _report(study.Study(folder, study.read_sweep(folder), arguments.storage))
        return
    if arguments.config is None:
        raise UserError("sweep needs --config, or --report DIR; name a config with get_hyper, such as numerals.")
    for option in ("trials", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UserError(f"--{option} is {value}, but must be at least 1.")
    name = "-".join(filter(None, [Path(arguments.config.partition(":")[0]).stem, arguments.config.partition(":")[2]]))
    folder = Path(arguments.workdir or Path("sweeps", name))
    base = config()
    points = check_points(load_points(arguments.config), base)
    if arguments.metric is not None:
        base.training.metric = arguments.metric
    wanted = study.Sweep(
        config=base.to_dict(),
        points=points,
        metric=base.training.metric,
        minimize=_is_minimized(base),
        sampler=arguments.sampler,
        prune=arguments.prune,
        seed=arguments.seed,
        name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
    )
    trials = wanted.default_trials(arguments.trials, folder)
    there = study.claim_sweep(folder, wanted)
    opened = study.Study(folder, there, arguments.storage)
    if arguments.launcher == "process":
        environments = launchers.worker_environments(arguments.workers, launchers.local_devices())
        launcher: launchers.Launcher = launchers.Processes(folder, arguments.storage, environments)
    else:
        parameters = dict(_parameter(each) for each in arguments.slurm)
        launcher = launchers.Submitted(
            folder, arguments.storage, arguments.workers or 1, arguments.launcher, parameters
        )
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
    from transformer_jax.tasks.registry import task_class

    task, metric = task_class(from_config_dict(config)), config.training.metric
    metrics = getattr(task, "metrics", None)
    if isinstance(metrics, tuple) and metric not in metrics:
        raise UserError(f"--metric is {metric!r}, but must be one of {', '.join(metrics)}.")
    lower = getattr(task, "lower_is_better", ())
    return isinstance(lower, tuple) and metric in lower
