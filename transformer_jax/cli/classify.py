"""transformer-jax classify: texts or lines to classes."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from transformer_jax.cli.console import texts_to_read, write
from transformer_jax.cli.options import add_model, load_as

if TYPE_CHECKING:
    from transformer_jax.bundle import Classification


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    classify = commands.add_parser(
        "classify",
        help="tell the class of texts, or of the lines of standard input",
        description="Tell the class of each TEXT, or of each line of standard input (UTF-8): one line of standard "
        "output each, CLASS<TAB>PROBABILITY.",
        allow_abbrev=False,
    )
    classify.set_defaults(command=_classify)
    add_model(classify)
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="a text to classify")
    classify.add_argument(
        "--json", action="store_true", help="print a JSON object per text: line, label, probabilities of all classes"
    )
    classify.add_argument("--output", metavar="FILE", help="write to FILE instead, whole or not at all")


def _classify(arguments: argparse.Namespace) -> None:
    from transformer_jax.bundle import TextClassifier

    texts = texts_to_read(arguments.texts)
    model = load_as(TextClassifier, arguments.model)
    found = model.classify(texts, **({} if arguments.batch_size is None else {"batch_size": arguments.batch_size}))
    render = _as_json if arguments.json else _as_columns
    write("".join(render(number, said) + "\n" for number, said in enumerate(found, start=1)), arguments.output)


def _as_columns(number: int, said: "Classification") -> str:
    return f"{said.label}\t{said.probabilities[said.label]:.4f}"


def _as_json(number: int, said: "Classification") -> str:
    probabilities = {name: round(share, 6) for name, share in said.probabilities.items()}
    return json.dumps({"line": number, "label": said.label, "probabilities": probabilities}, ensure_ascii=False)
