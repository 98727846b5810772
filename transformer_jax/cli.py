"""The command line: `transformer-jax COMMAND ...`.

The subcommands are `train`, `sweep`, those of the registered tasks, `evaluate`, `runs`, `info`, `serve`, `demo`,
`import` and `export`. JAX takes seconds to import, so functions that need it import it late and --help is quick.
"""

import argparse
import contextlib
import difflib
import functools
import importlib.metadata
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from transformer_jax import demo, experiments, interop, serving
from transformer_jax.system import UserError, config_name, flat_config, known_names, package_version, shipped_configs
from transformer_jax.system.runtime import prepare, run_program
from transformer_jax.task_groups import moved_fields
from transformer_jax.tasks.command_line import (
    Parser,
    add_model,
    add_processes,
    add_task_command,
    beside_others,
    check_options,
    command_for,
    refuse_empty_names,
    write_report,
)
from transformer_jax.tasks.registry import Command, registered, registered_names

if TYPE_CHECKING:
    from ml_collections import ConfigDict

DEFAULT_CONFIG = "numerals"
_OPTIONS = ("--config", "--config.GROUP.FIELD=VALUE", "--workdir", "--profile", "--verbose", "--distributed", "--help")
_KINDS = {int: "an integer", float: "a number", bool: "true or false"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done, or `train` received SIGTERM or SIGHUP. 2: a mistake in the command line, the config or the files, or output
    that cannot be written, reported in one sentence on stderr. 128 plus the number of a signal, such as 130 after
    Ctrl-C: ended by it. 141: the reader of the output has gone. With several processes, if one of them fails it does
    not return, but exits with 2, or with 75 where another process is gone.
    """
    started = time.monotonic()
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_training = arguments[:1] == ["train"]
    if is_training:
        _exit_on_sigterm()
    # What a run prints is in its logs too.
    return run_program("transformer-jax", lambda: _run(arguments, started), needs_output=not is_training)


def _run(argv: list[str], started: float) -> int:
    parser = _parser()
    _complete(parser)
    arguments, rest = parser.parse_known_args(argv)
    refuse_empty_names(arguments)
    if arguments.command is _train:
        return _train(arguments, rest, started)
    if arguments.command is _sweep:
        return _sweep(arguments, rest)
    if rest:
        parser.commands[argv[0]].refuse(rest)
    prepare()
    with beside_others(arguments) if "distributed" in arguments else contextlib.nullcontext():
        arguments.command(arguments)
    return 0


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, if it asks how the command line may go on, and exit."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _parser() -> Parser:
    parser = Parser(
        prog="transformer-jax",
        description="Train and use the encoder-decoder Transformer; compare runs; score, import and export models.",
        example="transformer-jax train\ntransformer-jax COMMAND --help",
        allow_abbrev=False,
    )
    _add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    experiments.add_sweep(commands).set_defaults(command=_sweep)
    for command in _task_commands():
        add_task_command(commands, command)
    _add_evaluate(commands)
    experiments.add_commands(commands)
    serving.add_commands(commands)
    demo.add_commands(commands)
    interop.add_commands(commands)
    parser.commands = commands.choices
    return parser


class _Version(argparse.Action):
    """Shows the versions, which take a moment to find, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        named = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
        others = ", ".join(f"{name} {version}" for name, version in named.items())
        print(f"transformer-jax {package_version()} ({others}, Python {platform.python_version()})")
        parser.exit()


def _add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_Version, nargs=0, help="show the versions of the package, JAX and Python")


# Training.


def _add_train(commands: Any) -> None:
    names = ", ".join(sorted(shipped_configs()))
    train = commands.add_parser(
        "train",
        help="train a model, or resume a run",
        description="Train a model. Without options: the embedded example, German number words into English, which "
        "takes a few minutes on a laptop. Rerun the same command to resume an interrupted run.",
        epilog=f"Shipped configs: {names}.",
        example="transformer-jax train --config multi30k:de-en --workdir runs/x \\\n    --config.optim.lr=1e-3",
        allow_abbrev=False,
    )
    train.set_defaults(command=_train)
    train.add_argument(
        "--config",
        default=DEFAULT_CONFIG,
        metavar="NAME[:ARG]",
        help="a shipped config, a file with get_config(), or the config.json of a run [numerals]",
    ).completer = lambda **_: sorted(shipped_configs())
    train.add_argument("--config.GROUP.FIELD", metavar="VALUE", help="override a field; may be given several times")
    if "--config." in os.environ.get("COMP_LINE", ""):  # the shell asks for fields
        from transformer_jax.config import Config

        for path in flat_config(Config().to_dict(), "config."):
            train.add_argument(f"--{path}")
    train.add_argument(
        "--workdir", metavar="DIR", help="folder of the run [runs/NAME_OF_THE_CONFIG, or that of config.json]"
    )
    train.add_argument(
        "--profile", action="store_true", help="trace some steps into DIR/profile, for TensorBoard and Perfetto"
    )
    _add_version(train)
    train.add_argument("--verbose", action="store_true", help="also show XLA's settings and the compiled step")
    add_processes(train)


def _train(arguments: argparse.Namespace, overrides: list[str], started: float) -> int:
    """Train, and return the exit status."""
    from absl import logging

    workdir = _workdir_of(arguments.config) if arguments.workdir is None else arguments.workdir
    logging.set_verbosity(logging.FATAL)  # libraries raise their errors too; their logs are not for users
    notes = prepare()
    # Only now: these import JAX.
    from transformer_jax.config import load_config_file
    from transformer_jax.training import run

    with beside_others(arguments):
        config = _override(load_config_file(arguments.config), overrides)
        outcome = run(
            config,
            workdir,
            started=started,
            notes=notes,
            profile=arguments.profile,
            verbose=arguments.verbose,
        )
    return 130 if outcome.signal == signal.SIGINT else 0


def _sweep(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run a sweep, and return the exit status."""
    prepare()
    from transformer_jax.config import load_config_file

    experiments.start_sweep(arguments, lambda: _override(load_config_file(arguments.config), overrides, "sweep"))
    return 0


def _exit_on_sigterm() -> None:
    """From now on SIGTERM, outside a run, exits with status 0: nothing is unsaved then."""

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, leave)


def _workdir_of(config: str) -> str:
    """The folder of a run without `--workdir`."""
    folder, slash, name = config.rstrip("/").rpartition("/")
    if name == "config.json":
        return folder or slash or "."
    return str(Path("runs", config_name(config)))


def _override(config: "ConfigDict", overrides: list[str], command: str = "train") -> "ConfigDict":
    """Change fields of `config` as `--config.GROUP.FIELD=VALUE`, given to `command`, says."""
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    argv, remaining = ["transformer-jax"], iter(overrides)
    for override in remaining:
        option = override.partition("=")[0]
        name, _, path = option.lstrip("-").partition(".")
        if name != "config":
            raise UserError(f"{override} is not an option of {command}; {_nearest_option(option, config)}")
        group = config
        for part in path.split("."):
            if not isinstance(group, ConfigDict) or part not in group:
                if path in moved_fields():
                    now = " or ".join(f"config.{name}" for name in moved_fields()[path])
                    raise UserError(f"config.{path} is now {now}; set it there.")
                raise UserError(f"config.{path} is not a field; {_nearest_fields(path, config, group, part)}")
            group = group[part]
        if "=" not in override and isinstance(group, bool):
            argv.append(override)
            continue
        value = override.partition("=")[2] if "=" in override else next(remaining, "--")
        if "=" not in override and value.startswith(("--", "-config.")):
            raise UserError(f"config.{path} has no value; write --config.{path}=VALUE.")
        if isinstance(group, tuple) and isinstance((*group, 0)[0], str) and not value.lstrip().startswith(("(", "[")):
            value = repr(tuple(part.strip() for part in value.split(",")))  # title,text for ('title', 'text')
        argv.append(f"--config.{path}={value}")
    own = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=own, sys_argv=argv)
        rest = own(argv)[1:]
    except flags.Error as error:
        for path, value in (given[len("--") :].split("=", 1) for given in argv[1:] if given in str(error)):
            kind = type(functools.reduce(getattr, path.split(".")[1:], config))
            if kind in _KINDS:
                raise UserError(f"{path} is {value!r}, but must be {_KINDS[kind]}.") from error
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{rest[0]} is not an option; write --config.GROUP.FIELD=VALUE.")
    return holder.value


def _nearest_option(option: str, config: "ConfigDict") -> str:
    """The end of the sentence about an unknown option: what may have been meant."""
    name = option.partition(":")[0]
    if name in shipped_configs() or name.endswith(".py"):
        return f"did you mean --config {option}?"
    fields = {path.rpartition(".")[2]: f"--{path}" for path in flat_config(config.to_dict(), "config.")}
    known = fields | {name.lstrip("-"): name for name in _OPTIONS}
    near = difflib.get_close_matches(option.lstrip("-").replace("-", "_"), known, n=1)
    return f"did you mean {known[near[0]]}?" if near else f"known here: {', '.join(_OPTIONS)}."


def _nearest_fields(path: str, config: "ConfigDict", group: Any, part: str) -> str:
    """The end of the sentence about an unknown field: where its name is known, or the nearest names."""
    last = path.rpartition(".")[2]
    elsewhere = [f"config.{name}.{last}" for name, fields in config.items() if last in _keys(fields)]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return known_names(part, _keys(group)) if _keys(group) else "docs/configuration.md lists all fields."


def _keys(group: Any) -> list[str]:
    return list(group) if hasattr(group, "keys") else []


# Scores.


def _add_evaluate(commands: Any) -> None:
    tasks = _task_commands()
    scores = " ".join(f"{command.subject.capitalize()}: {command.scores}." for command in tasks)
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a test set",
        description=f"Score a model on a test set and print one JSON object. {scores} Seconds include compilation.",
        example="transformer-jax evaluate --model runs/numerals --config numerals --split test",
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    add_model(evaluate)
    for option, settings in _options(tasks).items():
        evaluate.add_argument(option, **settings)
    evaluate.add_argument(
        "--config",
        metavar="NAME[:ARG]",
        help="score on the data of this config: a shipped one, a file, or the config.json of a run",
    )
    evaluate.add_argument("--split", metavar="NAME", help="split to score, such as test_2016_flickr")
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
