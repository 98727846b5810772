"""transformer-jax translate: texts or lines to translations."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.command_line import (
    ALPHA_HELP,
    add_model,
    add_sampling,
    add_search,
    checked_argument,
    load_as,
    require_one_process,
    share_out,
    texts_to_read,
    write,
)

if TYPE_CHECKING:
    from transformer_jax.tasks.translation.translator import Translation, Translator


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    translate = commands.add_parser(
        "translate",
        help="translate texts, or the lines of standard input",
        description="Translate each TEXT, or each line of standard input (UTF-8), to one line of standard output. "
        "Blank lines stay blank.",
        epilog="With --n-best above 1 or --scores, each line of output is LINE<TAB>SCORE<TAB>TEXT: the number of the "
        "input line from 1, the log-probability over the length penalty, and the translation, best first.",
        allow_abbrev=False,
    )
    translate.set_defaults(command=_translate)
    add_model(translate)
    add_search(translate)
    translate.add_argument("--alpha", type=float, metavar="X", help=ALPHA_HELP)
    translate.add_argument("texts", nargs="*", metavar="TEXT", help="a sentence to translate")
    translate.add_argument("--n-best", type=int, default=1, metavar="K", help="translations of each line [1]")
    translate.add_argument("--scores", action="store_true", help="print LINE<TAB>SCORE<TAB>TEXT")
    add_sampling(translate)
    translate.add_argument("--min-length", type=int, default=0, metavar="N", help="tokens a translation must have [0]")
    translate.add_argument(
        "--max-length", type=int, metavar="N", help="tokens a translation may have [the model's, usually input + 50]"
    )
    translate.add_argument("--prefix", metavar="TEXT", help="how every translation must begin")
    translate.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="let no N tokens come twice")
    translate.add_argument(
        "--conventions",
        metavar="NAME",
        help="search as another system does where they differ: paper, transformers, ctranslate2 [as "
        "the model's settings say]",
    )
    shape = translate.add_mutually_exclusive_group()
    shape.add_argument("--stream", action="store_true", help="print words as they come (greedy, or drawn)")
    shape.add_argument(
        "--alignment",
        action="store_true",
        help="print a JSON object per translation: line, score, text, source and target pieces, and the weights with "
        "which each target piece looked at each source piece, as the mean over layers and heads",
    )
    translate.add_argument("--output", metavar="FILE", help="write to FILE instead, whole or not at all")


def _translate(arguments: argparse.Namespace) -> None:
    from transformer_jax.system import distributed
    from transformer_jax.tasks.translation.translator import Translator

    if arguments.stream:
        require_one_process("--stream")
        for name, given in (
            ("--beam", arguments.beam is not None),
            ("--alpha", arguments.alpha is not None),
            ("--n-best", arguments.n_best > 1),
            ("--scores", arguments.scores),
            ("--output", arguments.output),
        ):
            if given:
                raise UserError(f"--stream cannot go with {name}; drop one of them.")
    if arguments.temperature:
        require_one_process("--temperature")
    texts = texts_to_read(arguments.texts)
    model = load_as(Translator, arguments.model)
    options = {
        name: getattr(arguments, name)
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "seed",
            "min_length",
            "max_length",
            "no_repeat_ngram",
            "conventions",
        )
    }
    options["prefix"] = None if arguments.prefix is None else checked_argument(arguments.prefix)
    if arguments.stream:
        _stream(model, texts, options)
        return
    share_out(model, arguments, texts, lambda: model.check(texts))
    render = _as_json if arguments.alignment else _as_columns if arguments.scores or arguments.n_best > 1 else _as_text

    def lines_of(numbered: list[tuple[int, str]]) -> list[str]:
        found = model.search(
            [text for _, text in numbered],
            beam_size=arguments.beam,
            alpha=arguments.alpha,
            batch_size=arguments.batch_size,
            return_attention=arguments.alignment,
            n_best=arguments.n_best,
            **options,
        )
        return [
            "".join(render(number, translation) + "\n" for translation in translations)
            for (number, _), translations in zip(numbered, found, strict=True)
        ]

    write("".join(distributed.deal(lines_of, list(enumerate(texts, start=1)))), arguments.output)


def _stream(model: "Translator", texts: Sequence[str], options: dict[str, Any]) -> None:
    model.check(texts)
    for text in texts:
        for piece in model.stream(text, **options):
            write(piece)
        write("\n")


def _as_text(number: int, translation: "Translation") -> str:
    return translation.text


def _as_columns(number: int, translation: "Translation") -> str:
    return f"{number}\t{translation.score:.4f}\t{translation.text}"


def _as_json(number: int, translation: "Translation") -> str:
    values: dict[str, Any] = {"line": number, "score": round(translation.score, 4), "text": translation.text}
    if translation.alignment is not None:
        source, target, weights = translation.alignment
        mean = weights.mean(axis=(0, 1)).round(4).tolist()
        values |= {"source": source, "target": target, "weights": mean}
    return json.dumps(values, ensure_ascii=False)
