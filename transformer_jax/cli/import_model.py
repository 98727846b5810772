"""transformer-jax import: a model of another system as a model folder."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_jax.system.errors import UserError

_TORCH_OPTIONS = ("num_heads", "norm_first", "activation", "prefix")


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    parser = commands.add_parser(
        "import",
        help="make a model folder of weights of another system",
        description="Make the model folder OUT of SOURCE. Weights are read from safetensors files; pickles (*.bin, "
        "*.pt) are refused, for opening one runs the code in it.",
        epilog="KIND: marian, a folder of MarianMTModel of transformers, such as the OPUS-MT models (config.json, "
        "model.safetensors, source.spm, target.spm, vocab.json); torch, a state dict of PyTorch's nn.Transformer in a "
        "safetensors file.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_import)
    parser.add_argument("--from", required=True, metavar="KIND", dest="kind", help=", ".join(_KINDS))
    torch = parser.add_argument_group("of --from torch", "What the shapes of the weights do not tell.")
    torch.add_argument("--num-heads", type=int, metavar="N", help="heads of an attention [8]")
    torch.add_argument("--norm-first", action="store_true", default=None, help="the layers are pre-norm [post-norm]")
    torch.add_argument("--activation", metavar="NAME", help="relu, gelu or swish [relu]")
    torch.add_argument("--prefix", metavar="TEXT", help="what the names of the tensors begin with, such as model. []")
    parser.add_argument("source", metavar="SOURCE", help="a folder or file of that kind")
    parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist")


def _import(arguments: argparse.Namespace) -> None:
    if arguments.kind not in _KINDS:
        raise UserError(f"--from is {arguments.kind!r}, but must be one of {', '.join(_KINDS)}.")
    _KINDS[arguments.kind](arguments)
    print(f"{arguments.out}: a model folder; {Path(arguments.out, 'README.md')} tells of it", file=sys.stderr)


def _from_marian(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.marian_import import import_marian

    for name in _TORCH_OPTIONS:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with --from torch alone; drop it.")
    import_marian(arguments.source, arguments.out)


def _from_torch(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.torch_transformer import import_torch

    options = {name: getattr(arguments, name) for name in _TORCH_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    import_torch(arguments.source, arguments.out, **given)


_KINDS: dict[str, Callable[[argparse.Namespace], None]] = {"marian": _from_marian, "torch": _from_torch}
"""What can be imported, and how."""
