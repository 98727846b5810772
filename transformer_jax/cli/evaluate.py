"""transformer-jax evaluate: a model's scores on a test set, as its task's command computes them."""

import argparse
from typing import Any

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.command_line import add_model, command_for, write_report
from transformer_jax.tasks.registry import Command, registered, registered_names


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
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
