"""Shared parts of the commands: options, input and output, and splitting the work among processes."""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from transformer_jax.system import UserError, finite, known_names
from transformer_jax.system.output import ProgressDisplay
from transformer_jax.system.runtime import Shown, printable, show_error, stdout_bytes
from transformer_jax.tasks.registry import Command, Registration, registered, registered_names

if TYPE_CHECKING:
    from transformer_jax.config import Config


class Parser(argparse.ArgumentParser):
    """Reads a command line, and its subcommands those of theirs."""

    def __init__(self, *arguments: Any, example: str = "", **options: Any) -> None:
        """As argparse does, with an example, of one or more lines, for the end of the help."""
        super().__init__(*arguments, **options)
        self.example = example
        self.commands: dict[str, Parser] = {}

    def format_help(self) -> str:
        """The help, with the example."""
        example = "".join(f"  {line}\n" for line in self.example.splitlines())
        return super().format_help() + (f"\nexample:\n{example}" if example else "")

    def error(self, message: str) -> NoReturn:
        """Exit with a message, in which an argument cannot control the terminal."""
        if found := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.+)\)", message):
            names = re.findall(r"[^ ,']+", found[3])
            message = f"{found[1]} is {found[2]!r}; {known_names(found[2], names).rstrip('.')}"
        end = " " if message.endswith("?") else "; "
        self.exit(2, f"{self.prog}: error: {printable(message)}{end}{self.prog} --help lists the options\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit with a message about arguments that this command does not know, and the nearest option."""
        near = known_names(unknown[0].partition("=")[0], re.findall(r"--[\w-]+", self.format_usage()))
        hint = f"; {near}" if unknown[0].startswith("--") and near.startswith("did") else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but refuse `--option=--`, of which it makes an empty list."""
        arguments = sys.argv[1:] if args is None else list(args)
        for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
            if re.fullmatch(r"-[^=]*=--", argument):
                self.error(f"argument {argument[:-3]}: expected one argument, not --")
        return super().parse_known_args(arguments, namespace)


def checked_argument(text: str) -> str:
    """The argument.

    Raises:
        UserError: if it is not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 reach Python as lone surrogates
        raise UserError(f"The argument {text!r} is not UTF-8; correct it, or set the terminal to UTF-8.") from error
    return text


def write(text: str) -> None:
    """Write UTF-8, whatever the locale, to standard output.

    Raises:
        UserError: if it cannot be written.
    """
    from transformer_jax.system import distributed

    if distributed.is_main():
        stdout_bytes(text.encode("utf-8"))


def write_report(report: Mapping[str, object]) -> None:
    """Write one JSON object, with null for infinities and NaN."""
    write(json.dumps(finite(report), ensure_ascii=False, allow_nan=False) + "\n")


def progress(message: str) -> None:
    """Report progress on standard error."""
    from transformer_jax.system import distributed

    if distributed.is_main():
        show_error(f"transformer-jax: {message}")


def display_of(
    doing: str, total: int | None, noun: str = "lines", *, beside: bool = False, hidden: bool = False
) -> ProgressDisplay:
    """A progress display on standard error.

    Args:
        doing: the work, such as "translating".
        total: of how many; None if unknown.
        noun: what is counted.
        beside: whether results go to a terminal meanwhile, where a bar would be in their way.
        hidden: whether to display nothing.
    """
    from transformer_jax.system import distributed

    kind: Literal["bar", "lines", "none"] = "bar" if Shown(sys.stderr).isatty() and not beside else "lines"
    return ProgressDisplay(kind if distributed.is_main() and not hidden else "none", doing, total, noun, say=progress)


PROMPT = "> "


class TypedLines:
    """Lines typed at a terminal, as a binary stream that prompts for each."""

    def __init__(self) -> None:
        """Say how to end; enable line editing if standard output is a terminal too."""
        self._edits = Shown(sys.stdout).isatty()
        if self._edits:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (`input` uses it once it is imported)
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")
        progress("type a text and press Enter; press Ctrl-D to quit")

    def readline(self, size: int = -1) -> bytes:
        """The next line; empty at the end."""
        # Standard output has the answers: prompts appear there only if it is the terminal.
        shown = Shown(sys.stdout if self._edits else sys.stderr)
        line = b""
        try:
            if self._edits:
                line = input(PROMPT).encode(sys.stdin.encoding, "surrogateescape") + b"\n"
            else:
                print(PROMPT * shown.isatty(), end="", file=shown, flush=True)
                line = sys.stdin.buffer.readline(size)
        except EOFError:
            pass
        finally:
            if not line and shown.isatty():
                print(file=shown, flush=True)
        return line


ALPHA_HELP = "exponent of the length penalty [the model's, usually 0.6]"
PLOTS_OPTION = {"metavar": "DIR", "help": "draw pictures of the scores into this folder, as PNG"}
BEAM_HELP = "hypotheses kept in the search [the model's, usually 4]"


def add_task_command(commands: Any, command: Command) -> None:
    """Add the subcommand of a task to those of a parser."""
    parser = commands.add_parser(
        command.name,
        help=command.help,
        description=command.description,
        epilog=command.epilog,
        example=command.example,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command.run)
    add_model(parser)
    command.add_arguments(parser)


def registration_of(command: Command) -> Registration:
    """The registered task whose command has this name.

    Raises:
        UserError: if there is none.
    """
    for task in map(registered, registered_names()):
        if task.command is not None and task.command.name == command.name:
            return task
    raise UserError(f"The command {command.name} belongs to no registered task; give it to register_task.")


def load_for(command: Command, path: str) -> Any:
    """The trained model in a folder.

    Raises:
        UserError: if it cannot be read, or is served by another command.
    """
    from transformer_jax.tasks.model_folder import load, task_of

    model, own, task = load(path), registration_of(command), task_of(path)
    if task == own.name or (isinstance(own.model, type) and isinstance(model, own.model)):
        return model
    raise UserError(f"{path} holds a model for another task; use transformer-jax {command_for(task, path).name}.")


def command_for(task: str, path: str) -> Command:
    """The command of a registered task, whose model is in the folder `path`, or else one for the same class of model.

    Raises:
        UserError: if there is none.
    """
    own = registered(task)
    command = own.command
    for other in map(registered, registered_names()):
        if command is None and other.model is own.model:
            command = other.command
    if command is None:
        raise UserError(
            f"{path} holds a model that no command serves; load it in Python, or train from it with --config.init_from."
        )
    return command


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--batch-size` and the options of several processes."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a model folder, or the folder of its run, such as runs/numerals"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="texts at a time on each device; changes speed, not results"
    )
    add_processes(parser)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options of several processes, which `beside_others` reads."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command with the same input on each machine (or several times on one), and the processes "
        "split the work; process 0 writes the result. Without these options one process uses all devices of its "
        "machine.",
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes; on Cloud TPU, Slurm and others that JAX detects, this option suffices",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address at which process 0 waits for the others")
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="number of this process, from 0")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="above 0: sample instead of searching [0]"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens [all]")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of tokens of probability P [1]",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples [0]")


_FIELDS = {"beam": "beam_size", "n": "n_best"}
"""Fields of `SearchOptions` by the options of commands, where their names differ."""


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse options out of their ranges, which are those of `SearchOptions`, before anything is read.

    Raises:
        UserError: naming the option.
    """
    from transformer_jax.decoding.options import SearchOptions
    from transformer_jax.system import FieldError, NotNegative, Positive, check_value, field_types

    given = {_FIELDS.get(name, name): value for name, value in vars(arguments).items() if value is not None}
    names = {_FIELDS.get(name, name): f"--{name.replace('_', '-')}" for name in vars(arguments)}
    try:
        SearchOptions(**{name: given[name] for name in field_types(SearchOptions) if name in given})
    except FieldError as error:
        raise error.named(lambda name: names[name]) from None
    for name, hint in (("batch_size", Positive), ("top", Positive), ("samples", NotNegative), ("num_heads", Positive)):
        if name in given:
            check_value(name, given[name], hint, lambda name: names[name])


_NAMES = (
    *("model", "input", "output", "prefix_file", "picture", "plots", "attention", "png"),
    *("data", "source", "reference", "config", "manual_dir", "workdir"),
)


def refuse_empty_names(arguments: argparse.Namespace) -> None:
    """Refuse options that name a file or folder and are empty.

    Raises:
        UserError: naming the option.
    """
    for name in (*_NAMES, "out"):
        if getattr(arguments, name, None) == "":
            option = f"--{name.replace('_', '-')}" if name != "out" else "OUT"
            raise UserError(f"{option} is empty; name a file or folder.")


_PROCESS = ("distributed", "coordinator", "num_processes", "process_id")
_WRITTEN_BY_FIRST = ("output", "picture", "plots", "attention")
_NAME_CONTENT = ("texts", "input", "model", "data", "source", "reference", "config", "manual_dir", "prefix_file")
_MAY_DIFFER = {"command", *_PROCESS, *_WRITTEN_BY_FIRST, *_NAME_CONTENT}
"""Arguments that may differ among processes; the texts and the model that they name must not."""


@contextlib.contextmanager
def beside_others(arguments: argparse.Namespace) -> Iterator[None]:
    """Connect to the other processes that were started for this command, if any, and end with them.

    Enter it before anything else that uses JAX.

    Raises:
        UserError: if they do not answer.
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
        distributed.barrier()  # all fail if the first one cannot write


def share_out(model: Any, arguments: argparse.Namespace, texts: Iterable[Any]) -> None:
    """Prepare for `distributed.parallel_map` of these texts: put the model on all devices of this process.

    Args:
        model: the loaded model.
        arguments: parsed arguments of the command.
        texts: all of them, serializable as JSON.

    Raises:
        UserError: if the processes were given different texts, options or models.
    """
    import jax

    from transformer_jax.sharding import replicated
    from transformer_jax.system import distributed
    from transformer_jax.tasks.model_folder import CONFIG_FILE, folder_of

    if jax.local_device_count() > 1:
        model.params = replicated(model.params)
    if distributed.process_count() == 1:
        return
    digest, count = hashlib.sha256(), 0
    for text in texts:
        count += 1
        digest.update(json.dumps(text).encode() + b"\n")
    options = {name: value for name, value in vars(arguments).items() if name not in _MAY_DIFFER}
    distributed.assert_equal(
        {
            **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
            "The input": f"{count:,} texts of SHA-256 {digest.hexdigest()[:12]}",
            # It contains the hashes of all other files.
            "The model": hashlib.sha256((folder_of(arguments.model) / CONFIG_FILE).read_bytes()).hexdigest()[:12],
        }
    )


def require_one_process(option: str) -> None:
    """Refuse an option that processes all texts, in order.

    Raises:
        UserError: if there are several processes.
    """
    from transformer_jax.system import distributed

    if distributed.process_count() > 1:
        raise UserError(f"{option} needs all texts in one process; drop it, or start a single process.")


def config_of(arguments: argparse.Namespace) -> "Config":
    """The configuration that `--config` names, with `--manual-dir`.

    Raises:
        UserError: if it cannot be read.
    """
    from transformer_jax.config import read_config

    config = read_config(arguments.config)
    if arguments.manual_dir is None:
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, manual_dir=arguments.manual_dir))


def samples(
    arguments: argparse.Namespace, inputs: Sequence[str], outputs: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Input, output and reference of the first `--samples` examples, as a part of a report."""
    rows = list(zip(inputs, outputs, references, strict=True))[: max(0, arguments.samples)]
    names = ("input", "output", "reference")
    return {"samples": [dict(zip(names, row, strict=True)) for row in rows]} if rows else {}
