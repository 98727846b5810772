"""Train a model; without arguments: configs/numerals.py into runs/numerals, a few minutes on a laptop.

The same command resumes a run that was interrupted.
"""

import os
import signal
import sys
import time
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from transformer_jax.system import UserError
from transformer_jax.system.runtime import prepare, run_program
from transformer_jax.task_groups import moved_fields
from transformer_jax.tasks.command_line import Parser, add_processes, add_version, beside_others, refuse_empty_names

DEFAULT_CONFIG = Path(__file__).resolve().parent / "configs" / "numerals.py"


def main(argv: list[str]) -> int:
    """Read the command line and train.

    Returns 0 on success or after SIGTERM or SIGHUP during the run, 2 for mistakes in the arguments, the config or the
    data, 130 after Ctrl-C.
    Output that cannot be shown changes nothing: everything is in the logs of the run.
    With several processes, if one of them fails it does not return, but exits with 2, or with 75 where another process
    is gone.
    """
    started = time.monotonic()
    return run_program("train.py", lambda: _run(argv, started), needs_output=False)


def _run(argv: list[str], started: float) -> int:
    parser = Parser(prog="train.py", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--config",
        default=str(DEFAULT_CONFIG),
        metavar="FILE[:ARG]",
        help="a file with get_config(), or the config.json of a run",
    )
    parser.add_argument(
        "--config.GROUP.FIELD", metavar="VALUE", help="change a field of it; may be given several times"
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of the run [runs/NAME_OF_THE_CONFIG, or that of config.json]"
    )
    parser.add_argument(
        "--profile", action="store_true", help="trace some steps into DIR/profile, for TensorBoard and Perfetto"
    )
    add_version(parser)
    add_processes(parser)
    arguments, overrides = parser.parse_known_args(argv[1:])
    refuse_empty_names(arguments)
    workdir = _workdir_of(arguments.config) if arguments.workdir is None else arguments.workdir
    logging.set_verbosity(logging.FATAL)  # libraries raise their errors too; their logs are not for users
    notes = prepare()
    # Only now: these import JAX.
    from transformer_jax.config import load_config_file
    from transformer_jax.training import run

    with beside_others(arguments):
        config = _override(load_config_file(arguments.config), overrides)
        outcome = run(config, workdir, started=started, notes=notes, profile=arguments.profile)
    return 130 if outcome.signal == signal.SIGINT else 0


def _workdir_of(config: str) -> str:
    """The folder of a run without `--workdir`."""
    folder, slash, name = config.rstrip("/").rpartition("/")
    if name == "config.json":
        return folder or slash or "."
    file, _, argument = config.partition(":")
    return str(Path("runs", "-".join(filter(None, [Path(file).stem, argument]))))


def _override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Change fields of `config` as `--config.GROUP.FIELD=VALUE` says."""
    remaining = iter(overrides)
    for override in remaining:
        name, _, path = override.partition("=")[0].lstrip("-").partition(".")
        if name != "config":
            raise UserError(f"{override} is not an option; name a configuration by --config=FILE.py.")
        group = config
        for part in path.split("."):
            if not isinstance(group, ConfigDict) or part not in group:
                if path in moved_fields():
                    now = " or ".join(f"config.{name}" for name in moved_fields()[path])
                    raise UserError(f"config.{path} is now {now}; set it there.")
                raise UserError(f"config.{path} is not a field; docs/configuration.md lists all fields.")
            group = group[part]
        if "=" in override or isinstance(group, bool):
            continue
        value = next(remaining, "--")
        if value.startswith(("--", "-config.")):
            raise UserError(f"config.{path} has no value; write --config.{path}=VALUE.")
    argv = ["train.py", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, sys_argv=argv)
        rest = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if rest:
        raise UserError(f"{rest[0]} is not an option; write --config.GROUP.FIELD=VALUE.")
    return holder.value


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # before and after a run nothing is unsaved
    sys.exit(main(sys.argv))
