"""transformer-jax translate: translate texts or lines."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.system import UserError
from transformer_jax.system.output import write_output
from transformer_jax.tasks.command_line import (
    PLOTS_OPTION,
    add_sampling,
    check_options,
    progress,
    require_one_process,
    write,
)
from transformer_jax.tasks.lines import Line, Refused, Report, answer_lines, checked_windows
from transformer_jax.tasks.pair_command import PairCommand, Pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transformer_jax.config import Config
    from transformer_jax.tasks.translation.translator import Translation, Translator


MOST_SHOWN = 50
"""Translations on a page of attention, which has a few hundred kilobytes for each."""
PAGE_SUFFIX = ".html"


class TranslateCommand(PairCommand):
    """transformer-jax translate."""

    subject = "translation"
    working = "translating"
    service_reference = "transformer_jax.tasks.translation.service:SERVICE"
    example = "transformer-jax translate --model runs/numerals < numbers.de > numbers.en"
    scores = (
        "sacreBLEU cased and lower-cased, chrF, their signatures, exact matches, perplexity of the references per "
        "token and per character"
    )

    pictures = ("length_bleu.png",)
    options = {**PairCommand.options, "--plots": PLOTS_OPTION}  # noqa: RUF012  (never changed)

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
        prefixes = parser.add_mutually_exclusive_group()
        prefixes.add_argument("--prefix", metavar="TEXT", help="beginning of every translation")
        prefixes.add_argument(
            "--prefix-file",
            metavar="FILE",
            help="beginnings of the translations, one a line, blank where it is free; plain or gzip",
        )
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
        parser.add_argument(
            "--attention",
            metavar="FILE",
            help="also draw the attention of each layer and head: as PNG or SVG, for the first text, or as HTML, "
            f"a page to look through it, for the first {MOST_SHOWN}",
        )

    def run(self, arguments: argparse.Namespace) -> None:
        """Translate the texts, or the lines of standard input."""
        check_options(arguments)
        if arguments.stream:
            require_one_process("--stream")
            for name, given in (
                ("--beam", arguments.beam is not None),
                ("--alpha", arguments.alpha is not None),
                ("--n-best", arguments.n_best > 1),
                ("--scores", arguments.scores),
                ("--output", arguments.output),
                ("--attention", arguments.attention),
            ):
                if given:
                    raise UserError(f"--stream cannot be combined with {name}; drop one of them.")
        if arguments.temperature:
            require_one_process("--temperature")
        shown = _Attention(arguments.attention)
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
        if arguments.stream:
            self._stream(arguments, options)
            return
        render = (
            _as_json if arguments.alignment else _as_columns if arguments.scores or arguments.n_best > 1 else _as_text
        )

        def search(model: "Translator", lines: list[Line], report: Report, attention: Any) -> "list[list[Translation]]":
            prefixes = [line.prefix for line in lines]
            return model.search(
                [line.text for line in lines],
                beam_size=arguments.beam,
                alpha=arguments.alpha,
                batch_size=arguments.batch_size,
                return_attention=attention,
                n_best=arguments.n_best,
                prefix=prefixes if any(prefixes) else None,
                places=[line.number - 1 for line in lines],
                report=report,
                **options,
            )

        def answer(model: "Translator", lines: list[Line], report: Report) -> list[tuple[str, list[str]]]:
            # Weights of all lines would not fit into memory.
            drawn, others = lines[: shown.room], lines[shown.room :]
            found = search(model, drawn, report, "all") if drawn else []
            shown.add([line.number for line in drawn], found, left_out=len(others))
            found += search(model, others, report, arguments.alignment) if others else []
            return [
                ("".join(render(line.number, translation) + "\n" for translation in translations), [])
                for line, translations in zip(lines, found, strict=True)
            ]

        answer_lines(self, arguments, answer, lambda number: render(number, None) + "\n")
        shown.write()

    def _stream(self, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
        model, _, windows = checked_windows(self, arguments, 1)
        refused = Refused()
        for [line] in windows:
            refused.count(line)
            if not line.refusal:
                for piece in model.stream(line.text, prefix=line.prefix, **options):
                    write(piece)
            write("\n")
        refused.tell()

    def score(self, outputs: Sequence[str], references: Sequence[str], model: Any) -> dict[str, float | str]:
        """BLEU, as the target language is scored, chrF and exact matches."""
        from transformer_jax.tasks.metrics import translation_scores

        scores = translation_scores(outputs, references, target_language=model.settings.target_language)
        return scores | super().score(outputs, references, model)

    def draw(
        self, sources: Sequence[str], outputs: Sequence[str], references: Sequence[str], model: Any
    ) -> "dict[str, Figure]":
        """BLEU by the length of the reference."""
        from transformer_jax import plots
        from transformer_jax.tasks.metrics import bleu_by_length

        found = bleu_by_length(outputs, references, target_language=model.settings.target_language)
        lengths = [f"{low}–{high}" if low < high else str(low) for low, high in found.lengths]
        figure = plots.length_bleu(lengths, found.bleu, found.sentences, overall=found.overall)
        return dict(zip(self.pictures, [figure], strict=True))

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


class _Attention:
    """Collects the attention of translations, and writes it to the file that `--attention` names."""

    def __init__(self, path: str | None) -> None:
        """Begin with none.

        Raises:
            UserError: if there cannot be such a file.
        """
        self._path, self._is_page = path, (path or "").lower().endswith(PAGE_SUFFIX)
        self._numbers: list[int] = []
        self._best: list[Translation] = []
        self._left_out = 0
        self._most = MOST_SHOWN if self._is_page else 1
        if path is not None:
            from transformer_jax.plots import PICTURE_SUFFIXES, check_picture

            require_one_process("--attention")
            check_picture(path, (*PICTURE_SUFFIXES, PAGE_SUFFIX))

    @property
    def room(self) -> int:
        """How many more translations it takes."""
        return 0 if self._path is None else self._most - len(self._best)

    def add(self, numbers: Sequence[int], found: "Sequence[list[Translation]]", *, left_out: int) -> None:
        """Add the best translations of the lines of these numbers; `left_out` lines more are not drawn."""
        self._left_out += left_out if self._path else 0
        for number, (best, *_) in zip(numbers, found, strict=True):
            if best.alignment is not None:  # blank lines have none
                self._numbers.append(number)
                self._best.append(best)

    def write(self) -> None:
        """Write the file.

        Raises:
            UserError: if it cannot be written.
        """
        if self._path is None:
            return
        if not self._best:
            progress(f"{self._path} is not written: no line has text, so there is no attention to draw")
            return
        if self._left_out:
            whose = f"the first {self._most} lines" if self._is_page else f"line {self._numbers[0]:,}"
            progress(f"{self._path} shows {whose} only" + ("" if self._is_page else "; a page (.html) can show more"))
        from transformer_jax import plots

        if self._is_page:
            examples = [
                plots.AttentionExample(best.alignment.source, best.alignment.target, best.attention._asdict())
                for best in self._best
                if best.alignment is not None and best.attention is not None
            ]
            write_output(self._path, plots.attention_page(examples, title="Attention").encode("utf-8"))
            return
        [best] = self._best
        assert best.alignment is not None
        source, target, weights = best.alignment
        plots.save_picture(self._path, plots.attention_maps(weights, target, source, title=best.text))


COMMAND = TranslateCommand(
    "translate",
    "translate texts, or the lines of standard input",
    "Translate each TEXT, or each line of standard input (UTF-8), to one line of standard output. Blank lines stay "
    "blank.",
    "With --n-best above 1 or --scores, each line of output is LINE<TAB>SCORE<TAB>TEXT: the number of the input line "
    "from 1, the log-probability over the length penalty, and the translation, best first.",
)


# The line of output for a translation; None: it could not be done.


def _as_text(number: int, translation: "Translation | None") -> str:
    return "" if translation is None else translation.text


def _as_columns(number: int, translation: "Translation | None") -> str:
    return f"{number}\t\t" if translation is None else f"{number}\t{translation.score:.4f}\t{translation.text}"


def _as_json(number: int, translation: "Translation | None") -> str:
    if translation is None:
        return json.dumps({"line": number, "score": None, "text": None})
    values: dict[str, Any] = {"line": number, "score": round(translation.score, 4), "text": translation.text}
    if translation.alignment is not None:
        source, target, weights = translation.alignment
        mean = weights.mean(axis=(0, 1)).round(4).tolist()
        values |= {"source": source, "target": target, "weights": mean}
    return json.dumps(values, ensure_ascii=False)
