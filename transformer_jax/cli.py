"""The command line: `transformer-jax COMMAND ...`.

The subcommands are those of the registered tasks, and `evaluate`, `import` and `export`. JAX takes seconds to import,
so functions that need it import it late and --help is quick.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.system import UserError
from transformer_jax.system.runtime import prepare, run_program, show_error
from transformer_jax.tasks.command_line import (
    Parser,
    add_model,
    add_task_command,
    add_version,
    beside_others,
    check_options,
    command_for,
    refuse_empty_names,
    write_report,
)
from transformer_jax.tasks.registry import Command, registered, registered_names


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 2: a mistake in the command line or its files, or output that cannot be written, reported in one sentence
    on stderr. 128 and the number of a signal, such as 130 after Ctrl-C: ended by it. 141: the output was closed by its
    reader. With several processes, if one of them fails it does not return, but exits with 2, or with 75 where another
    process is gone.
    """
    return run_program("transformer-jax", lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    refuse_empty_names(arguments)
    prepare()
    with beside_others(arguments) if "distributed" in arguments else contextlib.nullcontext():
        arguments.command(arguments)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="transformer-jax",
        description="Use a trained Transformer: one command for each task; score, import and export models.",
        allow_abbrev=False,
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _task_commands():
        add_task_command(commands, command)
    _add_evaluate(commands)
    _add_import(commands)
    _add_export(commands)
    return parser


def _add_evaluate(commands: Any) -> None:
    tasks = _task_commands()
    scores = " ".join(f"{command.subject.capitalize()}: {command.scores}." for command in tasks)
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a test set",
        description=f"Score a model on a test set and print one JSON object. {scores} Seconds include compilation.",
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    add_model(evaluate)
    for option, settings in _options(tasks).items():
        evaluate.add_argument(option, **settings)
    evaluate.add_argument("--config", metavar="FILE[:ARG]", help="use the data of this configuration (or config.json)")
    evaluate.add_argument("--split", metavar="NAME", help="its split, such as test_2016_flickr")
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


# Models from and for other systems.

Convert = Callable[[argparse.Namespace], None]

_TORCH_OPTIONS = ("num_heads", "norm_first", "activation", "prefix")
_QUANTIZED = "ctranslate2"
"""The only system with a choice of types for the stored weights."""


class _System(NamedTuple):
    export: Convert
    runs_in: str


def _add_import(commands: Any) -> None:
    parser = commands.add_parser(
        "import",
        help="make a model folder of weights of another system",
        description="Make the model folder OUT of SOURCE. Weights are read from safetensors files; pickles (*.bin, "
        "*.pt) are refused, because opening one runs the code in it.",
        epilog="KIND: marian, a folder of MarianMTModel of transformers, such as the OPUS-MT models (config.json, "
        "model.safetensors, source.spm, target.spm, vocab.json); torch, a state dict of PyTorch's nn.Transformer in a "
        "safetensors file.",
        allow_abbrev=False,
    )
    parser.set_defaults(command=_import)
    parser.add_argument("--from", required=True, metavar="KIND", dest="kind", help=", ".join(_IMPORTS))
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
        allow_abbrev=False,
    )
    parser.set_defaults(command=_export)
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, such as runs/numerals/model")
    parser.add_argument("--to", required=True, metavar="KIND", dest="kind", help=", ".join(_EXPORTS))
    parser.add_argument(
        "--quantization",
        metavar="TYPE",
        help="type of CTranslate2's weights: float32, int8, int8_float32, float16 or another of its types [float32]",
    )
    _add_out(parser)


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
