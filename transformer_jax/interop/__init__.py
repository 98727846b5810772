"""Import weights from other systems, and export models to them: the commands `import` and `export`.

The modules beside this one are imported when they are first used.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.system import UserError
from transformer_jax.system.runtime import show_error
from transformer_jax.tasks.command_line import check_options

Convert = Callable[[argparse.Namespace], None]

_TORCH_OPTIONS = ("num_heads", "norm_first", "activation", "prefix")
_QUANTIZED = "ctranslate2"
"""The only system with a choice of types for the stored weights."""


class _System(NamedTuple):
    export: Convert
    runs_in: str


def add_commands(commands: Any) -> None:
    """Add the subcommands `import` and `export`."""
    _add_import(commands)
    _add_export(commands)


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import",
        help="make a model folder of weights of another system",
        description="Make the model folder OUT of SOURCE. Weights are read from safetensors files; pickles (*.bin, "
        "*.pt) are refused, because opening one runs the code in it.",
        epilog="KIND: marian, a folder of MarianMTModel of transformers, such as the OPUS-MT models (config.json, "
        "model.safetensors, source.spm, target.spm, vocab.json); torch, a state dict of PyTorch's nn.Transformer in a "
        "safetensors file.",
        example="transformer-jax import --from marian opus-mt-en-de models/en-de",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_import)
    _add_kind(parser, "--from", _IMPORTS)
    torch = parser.add_argument_group("options of --from torch", "Options that the weights do not show.")
    torch.add_argument("--num-heads", type=int, metavar="N", help="number of attention heads [8]")
    torch.add_argument("--norm-first", action="store_true", default=None, help="the layers are pre-norm [post-norm]")
    torch.add_argument("--activation", metavar="NAME", help="relu, gelu or swish [relu]")
    torch.add_argument("--prefix", metavar="TEXT", help="prefix of the names of the tensors, such as model. []")
    parser.add_argument("source", metavar="SOURCE", help="a folder or file of that kind")
    _add_out(parser)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model for CTranslate2, transformers, or as StableHLO",
        description="Write a trained model as the folder OUT for another system. Its README.md shows how to use it "
        "there.",
        epilog="KIND: ctranslate2, a fast engine in C++; marian, MarianMTModel of transformers, for models with "
        "norm_first=False; pegasus, PegasusForConditionalGeneration of transformers, for those with norm_first=True; "
        "stablehlo, for jax without this package, which takes every model with a vocabulary.",
        example="transformer-jax export --model runs/numerals --to ctranslate2 numerals-ct2",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_export)
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, such as runs/numerals/model")
    _add_kind(parser, "--to", _EXPORTS)
    parser.add_argument(
        "--quantization",
        metavar="TYPE",
        help="type of CTranslate2's weights: float32, int8, int8_float32, float16 or another of its types [float32]",
    )
    _add_out(parser)


def _add_kind(parser: argparse.ArgumentParser, option: str, kinds: dict[str, Any]) -> None:
    added: Any = parser.add_argument(option, required=True, metavar="KIND", dest="kind", help=", ".join(kinds))
    added.completer = lambda **_: list(kinds)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist")


def _import(arguments: argparse.Namespace) -> None:
    check_options(arguments)
    _chosen("--from", arguments.kind, _IMPORTS)(arguments)
    show_error(f"{arguments.out}: a model folder; {Path(arguments.out, 'README.md')} describes it")


def _export(arguments: argparse.Namespace) -> None:
    system = _chosen("--to", arguments.kind, _EXPORTS)
    if arguments.kind != _QUANTIZED:
        _refuse(arguments, ("quantization",), f"--to {_QUANTIZED}")
    system.export(arguments)
    readme = Path(arguments.out, "README.md")
    show_error(f"{arguments.out}: for {system.runs_in}; {readme} shows how to use it")


def _chosen(option: str, kind: str, kinds: dict[str, Any]) -> Any:
    if kind not in kinds:
        raise UserError(f"{option} is {kind!r}, but must be one of {', '.join(kinds)}.")
    return kinds[kind]


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], owner: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is an option of {owner} only; drop it.")


def _from_marian(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.marian import import_marian

    _refuse(arguments, _TORCH_OPTIONS, "--from torch")
    import_marian(arguments.source, arguments.out)


def _from_torch(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.torch_transformer import import_torch

    options = {name: getattr(arguments, name) for name in _TORCH_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    import_torch(arguments.source, arguments.out, **given)


def _to_ctranslate2(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.ctranslate2_export import export_ctranslate2

    export_ctranslate2(arguments.model, arguments.out, quantization=arguments.quantization or "float32")


def _to_transformers(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.marian import export_marian

    export_marian(arguments.model, arguments.out, architecture=arguments.kind)


def _to_stablehlo(arguments: argparse.Namespace) -> None:
    from transformer_jax.interop.stablehlo_export import export_stablehlo

    export_stablehlo(arguments.model, arguments.out)


_IMPORTS: dict[str, Convert] = {"marian": _from_marian, "torch": _from_torch}
_EXPORTS = {
    "ctranslate2": _System(_to_ctranslate2, "CTranslate2"),
    "marian": _System(_to_transformers, "MarianMTModel of transformers"),
    "pegasus": _System(_to_transformers, "PegasusForConditionalGeneration of transformers"),
    "stablehlo": _System(_to_stablehlo, "jax"),
}
