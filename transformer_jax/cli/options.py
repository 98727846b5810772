"""Options that several commands share, and the loading of a model of the right kind."""

import argparse
from typing import Any, TypeVar

from transformer_jax.errors import UserError

Model = TypeVar("Model")

ALPHA_HELP = "of the length penalty [the model's, usually 0.6]"

_COMMANDS = {"Translator": "translate", "TextClassifier": "classify", "CoupletWriter": "couplet"}
"""What a model is loaded as, to the command that it is for."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and how much of the work it does at a time."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, such as runs/numerals/model")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts at a time on each device; changes speed, not results"
    )
    add_processes(parser)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Which of several processes this one is; `sharing.beside_others` reads it."""
    processes = parser.add_argument_group(
        "several processes",
        "Start the same command with the same input, on several machines or one, and all share in the work; process 0 "
        "tells what comes of it. Without these options one process uses all devices of its machine.",
    )
    processes.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes; by itself on Cloud TPU, Slurm and what else JAX finds",
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others")
    processes.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    processes.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")


def add_search(parser: argparse.ArgumentParser) -> None:
    """How widely to search."""
    parser.add_argument("--beam", type=int, metavar="K", help="hypotheses kept in the search [the model's, usually 4]")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How to draw."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="above 0: draw instead of search [0]"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens [all]")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest P of all [1]")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn [0]")


def load_as(kind: type[Model], path: str) -> Model:
    """The trained model in a folder.

    Raises:
        UserError: if it can't be read, or is for another command than that of `kind`.
    """
    from transformer_jax.bundle import load

    model = load(path)
    if not isinstance(model, kind):
        raise not_for_this_command(path, model)
    return model


def not_for_this_command(path: str, model: Any) -> UserError:
    """What to say of a loaded model that a command can do nothing with."""
    command = _COMMANDS.get(type(model).__name__)
    if command is None:  # stacks without a vocabulary, or the class of a registered task
        return UserError(
            f"{path} holds no model for the text commands; load it in Python, or train from it with --config.init_from."
        )
    return UserError(f"{path} holds a model for another task; use transformer-jax {command}.")
