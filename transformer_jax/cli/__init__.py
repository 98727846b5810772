"""The command line: `transformer-jax COMMAND ...`.

The subcommands are those of the registered tasks, and `evaluate`, `import` and `export`. JAX takes seconds to import,
so functions that need it import it late and --help is quick.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence

from transformer_jax.cli import convert, evaluate
from transformer_jax.system.errors import UserError
from transformer_jax.system.runtime import prepare
from transformer_jax.tasks.command_line import add_task_command, beside_others
from transformer_jax.tasks.registry import registered, registered_names


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 2: a mistake in the command line or its files, reported in one sentence on stderr with nothing written.
    130: interrupted. 141: the output was closed by its reader. With several processes, if one of them fails it does not
    return, but exits with 2, or with 75 where another process is gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Help contains Chinese characters, which not every locale can write.
        sys.stdout.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    prepare()
    try:
        with beside_others(arguments) if "distributed" in arguments else contextlib.nullcontext():
            try:
                arguments.command(arguments)
            except BrokenPipeError:
                # The interpreter flushes stdout once more as it ends.
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 141
    except UserError as error:
        print(f"transformer-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transformer-jax",
        description="Use a trained Transformer: one command for each task; score, import and export models.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in registered_names():
        command = registered(name).command
        if command is not None:
            add_task_command(commands, command)
    for module in (evaluate, convert):
        module.add_command(commands)
    return parser
