"""The command of tasks whose models read one text and write another, and how `evaluate` scores them."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from transformer_jax.plots import picture_folder, save_pictures
from transformer_jax.system import UserError
from transformer_jax.tasks.command_line import (
    ALPHA_HELP,
    BEAM_HELP,
    check_options,
    config_of,
    progress,
    registration_of,
    samples,
    share_out,
)
from transformer_jax.tasks.lines import Line, Report, add_lines, answer_lines, map_windows
from transformer_jax.tasks.registry import Command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transformer_jax.config import Config
    from transformer_jax.tasks.service import Service

Pairs = Sequence[tuple[str, str]]
Scored = Sequence[tuple[float, int]]
"""Log-probability and number of tokens of each reference, end of sentence included."""


class PairCommand(Command):
    """Writes an output for each input text; for any `Seq2SeqModel` whose `search` gives texts, such as `Translator`."""

    subject = "pairs"
    pictures: tuple[str, ...] = ()
    """File names of the pictures that `evaluate --plots` draws; with any, `options` has "--plots"."""
    scores = "exact matches, perplexity of the references per token and per character"
    options = {  # noqa: RUF012  (never changed)
        "--beam": {"type": int, "metavar": "K", "help": BEAM_HELP},
        "--alpha": {"type": float, "metavar": "X", "help": ALPHA_HELP},
        "--source": {"metavar": "FILE", "help": "inputs, one a line, plain or gzip"},
        "--reference": {"metavar": "FILE", "help": "expected outputs, aligned line by line"},
    }

    def __init__(self, name: str, help: str, description: str | None = None, epilog: str | None = None) -> None:
        """Make a command.

        Args:
            name: `transformer-jax NAME`.
            help: a phrase for the list of commands.
            description: sentences for the command's own help; default: `help`.
            epilog: further sentences, below its options.
        """
        self.name, self.help, self.epilog = name, help, epilog
        self.description = description or f"{help.capitalize()}: one line of standard output for each."

    @property
    def service(self) -> "Service | None":
        """Serves the models at /v1/NAME, unless the command has a service of its own."""
        from transformer_jax.tasks.service import PairService

        return super().service or PairService(f"/v1/{self.name}", self.help)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command, besides those of every command."""
        for name in ("--beam", "--alpha"):
            parser.add_argument(name, **PairCommand.options[name])
        add_lines(parser, "TEXT", "an input")

    def run(self, arguments: argparse.Namespace) -> None:
        """Write the best output for each text."""
        check_options(arguments)

        def answer(model: Any, lines: list[Line], report: Report) -> list[tuple[str, list[str]]]:
            found = self.outputs(arguments, model, [line.text for line in lines], report)
            return [(f"{output}\n", []) for output in found]

        answer_lines(self, arguments, answer)

    def evaluate(self, arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
        """Scores of the best outputs, and perplexities of the references."""
        folder = picture_folder(arguments.plots, self.pictures)
        pairs = self.pairs(arguments, model)
        sources, references = [source for source, _ in pairs], [reference for _, reference in pairs]
        model.check_pairs(sources, references)
        share_out(model, arguments, pairs)
        scored = score_references(model, pairs)
        progress(f"{self.working} {len(pairs):,} lines")
        start = time.perf_counter()
        outputs = map_windows(lambda own, report: self.outputs(arguments, model, own, report), sources, self.working)
        seconds = time.perf_counter() - start
        if folder is not None:
            save_pictures(folder, self.draw(sources, outputs, references, model))
        decoding = model.settings.decoding
        return {
            **self.score(outputs, references, model),
            **perplexities(scored, references),
            "lines": len(pairs),
            **samples(arguments, sources, outputs, references),
            "seconds": round(seconds, 3),
            "beam": decoding.beam_size if arguments.beam is None else arguments.beam,
            "alpha": decoding.alpha if arguments.alpha is None else arguments.alpha,
        }

    def outputs(
        self, arguments: argparse.Namespace, model: Any, texts: Sequence[str], report: Report | None = None
    ) -> list[str]:
        """The best output for each text; `report` is called with numbers of texts as they are done."""
        found = model.search(
            texts,
            beam_size=arguments.beam,
            alpha=arguments.alpha,
            batch_size=arguments.batch_size,
            report=report,
        )
        return [best.text for best, *_ in found]

    def score(self, outputs: Sequence[str], references: Sequence[str], model: Any) -> dict[str, float | str]:
        """Scores of the outputs of a model; a subclass may add to them."""
        from transformer_jax.tasks.metrics import exact_match

        return {"exact_match": exact_match(outputs, references)}

    def draw(
        self, sources: Sequence[str], outputs: Sequence[str], references: Sequence[str], model: Any
    ) -> "dict[str, Figure]":
        """The `pictures` of the outputs of a model, by their names; a subclass that has some draws them."""
        return {}

    def load_split(self, config: "Config", split: str, model: Any) -> Pairs:
        """The pairs of a split of the data of `config`: the task's validation data, unless a subclass reads others.

        Raises:
            UserError: if the data can't be read, or does not belong to the model.
        """
        from transformer_jax.tasks.registry import make_task

        task = registration_of(self).name
        if split != "validation" or config.task != task:
            raise UserError(f"evaluate scores this model on --split validation of a config of task {task!r}; name one.")
        pairs: Pairs = make_task(config, model.tokenizer.files()).validation
        return pairs

    def pairs(self, arguments: argparse.Namespace, model: Any) -> Pairs:
        """The pairs of the files, or of the split of a configuration, that the arguments name.

        Raises:
            UserError: if neither is named, or they cannot be read.
        """
        from transformer_jax.data.readers import is_blank, read_pairs

        files, experiment = (arguments.source, arguments.reference), (arguments.config, arguments.split)
        if all(files) and not any((*experiment, arguments.manual_dir)):
            pairs: Pairs = read_pairs(*files)
        elif all(experiment) and not any(files):
            config = config_of(arguments)
            # Of the task's own validation data there may be no split, but a part of the training data.
            is_held_out = arguments.split == "validation" and not config.data.validation_split
            load = partial(PairCommand.load_split, self) if is_held_out else self.load_split
            pairs = list(load(config, arguments.split, model))
        else:
            raise UserError("evaluate needs either --source and --reference, or --config and --split.")
        if all(is_blank(reference) for _, reference in pairs):
            raise UserError(f"{arguments.reference or arguments.split} has no reference text to score against.")
        return pairs


def score_references(model: Any, pairs: Pairs) -> Scored:
    """Log-probability and tokens of each reference; all processes share in the work."""

    def score(pairs: list[tuple[str, str]], report: Report) -> list[tuple[float, int]]:
        scores = model.score([source for source, _ in pairs], [reference for _, reference in pairs], report=report)
        return [(score.log_prob, len(score.tokens)) for score in scores]

    progress(f"scoring {len(pairs):,} references")
    # In one window: the last digit of a log-probability depends on the shape of its batch, and `score` holds only a few
    # batches at a time anyway.
    scored = map_windows(score, pairs, "scoring", "references", window=len(pairs))
    return [(log_prob, tokens) for log_prob, tokens in scored]


def perplexities(scored: Scored, references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Perplexity of the references, end of sentence included: per token (counting it) and per character (not)."""
    from transformer_jax.tasks.metrics import perplexity

    nll = -sum(log_prob for log_prob, _ in scored)
    return {
        "perplexity_per_token": perplexity(nll, sum(tokens for _, tokens in scored)),
        "perplexity_per_character": perplexity(nll, sum(map(len, references))),
    }
