"""The command line: `transformer-jax COMMAND ...`.

The subcommands are those of the registered tasks, and `evaluate`, `import` and `export`. JAX takes seconds to import,
so functions that need it import it late and --help is quick.
"""

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from transformer_jax.cli import convert
from transformer_jax.system import UserError
from transformer_jax.system.runtime import prepare, run_program
from transformer_jax.tasks.command_line import (
    add_model,
    add_task_command,
    add_version,
    beside_others,
    check_options,
    command_for,
    refuse_empty_names,
    write_report,
)
from transformer_jax.tasks.registry import Command, registered, registered_names


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 2: a mistake in the command line or its files, or output that cannot be written, reported in one sentence
    on stderr. 128 and the number of a signal, such as 130 after Ctrl-C: ended by it. 141: the output was closed by its
    reader. With several processes, if one of them fails it does not return, but exits with 2, or with 75 where another
    process is gone.
    """
    return run_program("transformer-jax", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    refuse_empty_names(arguments)
    prepare()
    with beside_others(arguments) if "distributed" in arguments else contextlib.nullcontext():
        arguments.command(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transformer-jax",
        description="Use a trained Transformer: one command for each task; score, import and export models.",
        allow_abbrev=False,
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _task_commands():
        add_task_command(commands, command)
    _add_evaluate(commands)
    convert.add_command(commands)
    return parser


def _add_evaluate(commands: Any) -> None:
    tasks = _task_commands()
    scores = " ".join(f"{command.subject.capitalize()}: {command.scores}." for command in tasks)
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a test set",
        description=f"Score a model on a test set and print one JSON object. {scores} Seconds include compilation.",
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    add_model(evaluate)
    for option, settings in _options(tasks).items():
        evaluate.add_argument(option, **settings)
    evaluate.add_argument("--config", metavar="FILE[:ARG]", help="use the data of this configuration (or config.json)")
    evaluate.add_argument("--split", metavar="NAME", help="its split, such as test_2016_flickr")
    evaluate.add_argument("--manual-dir", metavar="DIR", help="folder with the set's raw files")
    evaluate.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="N",
        help="also report the first N inputs, outputs and references [0]",
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from transformer_jax.tasks.model_folder import load, task_of

    command = command_for(task_of(arguments.model), arguments.model)
    for option in _options(_task_commands()):
        given = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if given is not None and option not in command.options:
            raise UserError(f"{option} means nothing for a model of {command.subject}; drop it.")
    check_options(arguments)
    report = command.evaluate(arguments, load(arguments.model))
    write_report(report | {"model": arguments.model})


def _task_commands() -> list[Command]:
    found = (registered(name).command for name in registered_names())
    return list(dict.fromkeys(command for command in found if command is not None))


def _options(commands: list[Command]) -> dict[str, Any]:
    """Each option that a task has, with the arguments of `add_argument`."""
    options: dict[str, Any] = {}
    for command in commands:
        options = {**command.options, **options}
    return options
