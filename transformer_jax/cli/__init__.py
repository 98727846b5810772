"""The command line: `transformer-jax COMMAND ...`.

JAX takes seconds to import; functions that need what is built on it import it late, so that --help is quick.
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
from transformer_jax.tasks.classification import command as classify
from transformer_jax.tasks.command_line import beside_others
from transformer_jax.tasks.couplets import command as couplet
from transformer_jax.tasks.translation import command as translate


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    0: done. 2: a mistake in the command line or its files, told in one sentence on stderr with nothing written.
    130: interrupted. 141: nobody reads the output any more. With several processes it does not return if one of them
    fails, but ends with 2, or with 75 where another process has gone.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Help names Chinese characters, which not every locale can write.
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
        description="Translate, classify and write couplets with a trained Transformer; score, import and export one.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (translate, classify, couplet, evaluate, convert):
        command.add_command(commands)
    return parser
