"""transformer-jax classify: texts or lines to classes."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.command_line import add_model, load_as, share_out, texts_to_read, write

if TYPE_CHECKING:
    from transformer_jax.tasks.classification.text_classifier import Classification


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    classify = commands.add_parser(
        "classify",
        help="tell the class of texts, or of the lines of standard input",
        description="Tell the class of each TEXT, or of each line of standard input (UTF-8): one line of standard "
        "output each, CLASS<TAB>PROBABILITY, with --top K of the K likeliest classes one after the other.",
        allow_abbrev=False,
    )
    classify.set_defaults(command=_classify)
    add_model(classify)
    classify.add_argument("texts", nargs="*", metavar="TEXT", help="a text to classify")
    classify.add_argument("--top", type=int, metavar="K", help="print the K likeliest classes, all if fewer [1]")
    classify.add_argument(
        "--json", action="store_true", help="print a JSON object per text: line, label, probabilities of all classes"
    )
    classify.add_argument("--output", metavar="FILE", help="write to FILE instead, whole or not at all")


def _classify(arguments: argparse.Namespace) -> None:
    from transformer_jax.system import distributed
    from transformer_jax.tasks.classification.text_classifier import TextClassifier

    top = 1 if arguments.top is None else arguments.top
    if top < 1:
        raise UserError(f"--top is {top}, but must be at least 1.")
    if arguments.json and arguments.top is not None:
        raise UserError("--json prints all classes, so --top means nothing there; drop one of them.")
    texts = texts_to_read(arguments.texts)
    model = load_as(TextClassifier, arguments.model)
    share_out(model, arguments, texts, lambda: model.check(texts))
    batch_size = {} if arguments.batch_size is None else {"batch_size": arguments.batch_size}

    def lines_of(numbered: list[tuple[int, str]]) -> list[str]:
        found = model.classify([text for _, text in numbered], **batch_size)
        return [
            _as_json(number, said) if arguments.json else _as_columns(top, said)
            for (number, _), said in zip(numbered, found, strict=True)
        ]

    lines = distributed.parallel_map(lines_of, list(enumerate(texts, start=1)))
    write("".join(line + "\n" for line in lines), arguments.output)


def _as_columns(top: int, said: "Classification") -> str:
    # Sorting keeps the order of equals, whose first is the label.
    likeliest = sorted(said.probabilities.items(), key=lambda item: -item[1])[:top]
    return "\t".join(f"{name}\t{share:.4f}" for name, share in likeliest)


def _as_json(number: int, said: "Classification") -> str:
    probabilities = {name: round(share, 6) for name, share in said.probabilities.items()}
    return json.dumps({"line": number, "label": said.label, "probabilities": probabilities}, ensure_ascii=False)
