"""What the commands share: options, what is read and written, and how work is shared out among processes."""

import argparse
import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from transformer_jax.system.errors import UserError
from transformer_jax.system.files import as_path, write_atomically


def texts_to_read(arguments: Sequence[str]) -> list[str]:
    """The texts given as arguments or, without any, the lines of standard input.

    Raises:
        UserError: if one is not UTF-8.
    """
    from transformer_jax.data.readers import decode_lines

    if arguments:
        return [checked_argument(text) for text in arguments]
    return decode_lines(sys.stdin.buffer.read(), "<stdin>")


def checked_argument(text: str) -> str:
    """The argument.

    Raises:
        UserError: if it is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 reach Python as lone surrogates
        raise UserError(f"The argument {text!r} is not UTF-8; mend it, or set the terminal to UTF-8.") from error
    return text


def write(text: str, path: str | None = None) -> None:
    """Write UTF-8, whatever the locale, to standard output or, whole or not at all, to a file.

    Raises:
        UserError: if the file can't be written.
    """
    from transformer_jax.system import distributed

    if not distributed.is_main():
        return
    content = text.encode("utf-8")
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        write_atomically(as_path(path), content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from error


def write_report(report: Mapping[str, object]) -> None:
    """Write one JSON object, null in place of what JSON has no word for."""
    write(json.dumps(_finite(report), ensure_ascii=False, allow_nan=False) + "\n")


def progress(message: str) -> None:
    """Tell a person, on standard error."""
    from transformer_jax.system import distributed

    if distributed.is_main():
        print(f"transformer-jax: {message}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    group = parser.add_argument_group(
        "several processes",
        "Start the same command with the same input, on several machines or one, and all share in the work; process 0 "
        "tells what comes of it. Without these options one process uses all devices of its machine.",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes; by itself on Cloud TPU, Slurm and what else JAX finds",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")


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
    from transformer_jax.tasks.model_folder import load

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


_PLACE = ("distributed", "coordinator", "num_processes", "process_id")
_OF_THE_FIRST = ("output", "picture")
_NAME_CONTENT = ("texts", "uppers", "model", "data", "source", "reference", "config", "manual_dir")
_MAY_DIFFER = {"command", *_PLACE, *_OF_THE_FIRST, *_NAME_CONTENT}
"""Arguments that need not be the same at all processes; where they name texts or a model, these must."""


@contextlib.contextmanager
def beside_others(arguments: argparse.Namespace) -> Iterator[None]:
    """Meet the other processes that were started for this command, if there are any, and end with them.

    To be entered before anything else that has to do with JAX.

    Raises:
        UserError: if they are not there.
    """
    from transformer_jax.system import distributed

    distributed.initialize(
        distributed=arguments.distributed,
        coordinator=arguments.coordinator,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
    )
    with distributed.exit_together():
        yield
        distributed.barrier()  # whether the first can write what it has to is the others' affair too


def share_out(model: Any, arguments: argparse.Namespace, texts: Sequence[Any], check: Callable[[], None]) -> None:
    """Make ready for `processes.deal` of these texts: the model is put on all devices of this process.

    Args:
        model: as the command has loaded it.
        arguments: of the command.
        texts: all of them; what `json` can write.
        check: called if there are several processes; should refuse texts that the model does not take, by their numbers
            among all. Those among the texts that a process is dealt would mislead.

    Raises:
        UserError: if the processes were given different texts, options or models.
    """
    import jax

    from transformer_jax.sharding import replicated
    from transformer_jax.system import distributed
    from transformer_jax.system.files import as_path
    from transformer_jax.tasks.model_folder import CONFIG_FILE

    if jax.local_device_count() > 1:
        model.params = replicated(model.params)
    if distributed.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    options = {name: value for name, value in vars(arguments).items() if name not in _MAY_DIFFER}
    distributed.assert_equal(
        {
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
            "The input": f"{len(texts):,} texts of SHA-256 {digest[:12]}",
            # It holds the hashes of all other files.
            "The model": hashlib.sha256((as_path(arguments.model) / CONFIG_FILE).read_bytes()).hexdigest()[:12],
        }
    )
    check()


def require_one_process(option: str) -> None:
    """Refuse an option that works on all texts, in order.

    Raises:
        UserError: if there are several processes.
    """
    from transformer_jax.system import distributed

    if distributed.process_count() > 1:
        raise UserError(f"{option} needs all texts in one process; drop it, or start a single process.")
