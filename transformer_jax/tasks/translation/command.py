"""transformer-jax translate: translate texts or lines."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.system import UserError
from transformer_jax.tasks.command_line import (
    add_sampling,
    check_options,
    checked_argument,
    load_for,
    require_one_process,
    share_out,
    texts_to_read,
    write,
)
from transformer_jax.tasks.pair_command import PairCommand, Pairs

if TYPE_CHECKING:
    from transformer_jax.config import Config
    from transformer_jax.tasks.translation.translator import Translation, Translator


class TranslateCommand(PairCommand):
    """transformer-jax translate."""

    subject = "translation"
    working = "translating"
    scores = (
        "sacreBLEU cased and lower-cased, chrF, their signatures, exact matches, perplexity of the references per "
        "token and per character"
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the search, of sampling and of the output."""
        super().add_arguments(parser)
        parser.add_argument("--n-best", type=int, default=1, metavar="K", help="translations of each line [1]")
        parser.add_argument("--scores", action="store_true", help="print LINE<TAB>SCORE<TAB>TEXT")
        add_sampling(parser)
        parser.add_argument(
            "--min-length",
            type=int,
            default=0,
            metavar="N",
            help="fewest tokens of a translation, its end included [0]",
        )
        parser.add_argument(
            "--max-length",
            type=int,
            metavar="N",
            help="most tokens of a translation, its end included [the model's, usually input + 50]",
        )
        parser.add_argument("--prefix", metavar="TEXT", help="beginning of every translation")
        parser.add_argument(
            "--no-repeat-ngram", type=int, default=0, metavar="N", help="never repeat a sequence of N tokens"
        )
        parser.add_argument(
            "--conventions",
            metavar="NAME",
            help="search as another system does where they differ: paper, transformers, ctranslate2 [the model's]",
        )
        shape = parser.add_mutually_exclusive_group()
        shape.add_argument("--stream", action="store_true", help="print words as they are found (greedy, or sampled)")
        shape.add_argument(
            "--alignment",
            action="store_true",
            help="print a JSON object per translation: line, score, text, source and target pieces, and the attention "
            "weights of each target piece over the source pieces, averaged over layers and heads",
        )

    def run(self, arguments: argparse.Namespace) -> None:
        """Translate the texts, or the lines of standard input."""
        from transformer_jax.system import distributed

        check_options(arguments)
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
                    raise UserError(f"--stream cannot be combined with {name}; drop one of them.")
        if arguments.temperature:
            require_one_process("--temperature")
        texts = texts_to_read(arguments.texts)
        model = load_for(self, arguments.model)
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
        render = (
            _as_json if arguments.alignment else _as_columns if arguments.scores or arguments.n_best > 1 else _as_text
        )

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

        write("".join(distributed.parallel_map(lines_of, list(enumerate(texts, start=1)))), arguments.output)

    def score(self, outputs: Sequence[str], references: Sequence[str], model: Any) -> dict[str, float | str]:
        """BLEU, as the target language is scored, chrF and exact matches."""
        from transformer_jax.tasks.metrics import translation_scores

        scores = translation_scores(outputs, references, target_language=model.settings.target_language)
        return scores | super().score(outputs, references, model)

    def load_split(self, config: "Config", split: str, model: Any) -> Pairs:
        """Any split of a translation set in the languages of the model."""
        from transformer_jax.tasks.translation.sources import load_pairs

        for side in ("source_language", "target_language"):
            ours, theirs = getattr(model.settings, side), getattr(config.data, side)
            if ours and theirs != ours:
                raise UserError(
                    f"config.data.{side} is {theirs!r}, but the model's is {ours!r}; name another --config."
                )
        return load_pairs(config.data, split)


COMMAND = TranslateCommand(
    "translate",
    "translate texts, or the lines of standard input",
    "Translate each TEXT, or each line of standard input (UTF-8), to one line of standard output. Blank lines stay "
    "blank.",
    "With --n-best above 1 or --scores, each line of output is LINE<TAB>SCORE<TAB>TEXT: the number of the input line "
    "from 1, the log-probability over the length penalty, and the translation, best first.",
)


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
