"""transformer-jax export: a trained model as a folder for another system."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax.system.errors import UserError

_QUANTIZED = "ctranslate2"
"""The only system whose weights can be stored in another type."""


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    export = commands.add_parser(
        "export",
        help="write a model for CTranslate2, transformers, or as StableHLO",
        description="Write a trained model as the folder OUT for another system. A README.md in it tells how it is "
        "used there.",
        epilog="KIND: ctranslate2, a fast engine in C++; marian, MarianMTModel of transformers, for models with "
        "norm_first=False; pegasus, PegasusForConditionalGeneration of transformers, for those with norm_first=True; "
        "stablehlo, for jax without this package, which takes every model.",
        allow_abbrev=False,
    )
    export.set_defaults(command=_export)
    export.add_argument("--model", required=True, metavar="DIR", help="a model folder, such as runs/numerals/model")
    export.add_argument("--to", required=True, metavar="KIND", help=", ".join(_KINDS))
    export.add_argument(
        "--quantization",
        metavar="TYPE",
        help="how CTranslate2 stores weights: float32, int8, int8_float32, float16 or another of its types [float32]",
    )
    export.add_argument("out", metavar="OUT", help="the folder to write, which must not exist")


def _export(arguments: argparse.Namespace) -> None:
    if arguments.to not in _KINDS:
        raise UserError(f"--to is {arguments.to!r}, but must be one of {', '.join(_KINDS)}.")
    if arguments.quantization is not None and arguments.to != _QUANTIZED:
        raise UserError(f"--quantization goes with --to {_QUANTIZED} alone; drop it.")
    _KINDS[arguments.to](arguments)
    out, system = arguments.out, _SYSTEMS[arguments.to]
    print(f"{out}: for {system}; {Path(out, 'README.md')} tells how to call it", file=sys.stderr)


def _to_ctranslate2(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.ctranslate2_export import export_ctranslate2

    export_ctranslate2(arguments.model, arguments.out, quantization=arguments.quantization or "float32")


def _to_transformers(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.marian_export import export_marian

    export_marian(arguments.model, arguments.out, architecture=arguments.to)


def _to_stablehlo(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.stablehlo_export import export_stablehlo

    export_stablehlo(arguments.model, arguments.out)


_KINDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ctranslate2": _to_ctranslate2,
    "marian": _to_transformers,
    "pegasus": _to_transformers,
    "stablehlo": _to_stablehlo,
}
_SYSTEMS = {
    "ctranslate2": "CTranslate2",
    "marian": "MarianMTModel of transformers",
    "pegasus": "PegasusForConditionalGeneration of transformers",
    "stablehlo": "jax",
}
