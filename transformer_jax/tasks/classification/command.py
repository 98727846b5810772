"""transformer-jax classify: classify texts or lines."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from transformer_jax.system import UserError
from transformer_jax.tasks.classification.labelled import Columns, Labelled, read_labelled
from transformer_jax.tasks.command_line import (
    PLOTS_OPTION,
    check_options,
    config_of,
    progress,
    samples,
    share_out,
)
from transformer_jax.tasks.lines import Line, Report, add_lines, answer_lines, map_windows
from transformer_jax.tasks.registry import Command

if TYPE_CHECKING:
    from transformer_jax.tasks.classification.text_classifier import Classification


CONFUSION, RELIABILITY = "confusion.png", "reliability.png"
"""Pictures of `evaluate --plots`."""


class ClassifyCommand(Command):
    """transformer-jax classify."""

    name = "classify"
    help = "classify texts, or the lines of standard input"
    description = (
        "Classify each TEXT, or each line of standard input (UTF-8): one line of standard output each, "
        "CLASS<TAB>PROBABILITY, with --top K of the K likeliest classes one after the other, with --explain followed "
        "by WORD<TAB>EFFECT of each word."
    )
    subject = "classification"
    example = "transformer-jax classify --model runs/ag_news --top 2 'Oil price climbs'"
    working = "classifying"
    service_reference = "transformer_jax.tasks.classification.service:SERVICE"
    scores = "accuracy, macro-F1, precision, recall and F1 of each class, confusion matrix, expected calibration error"
    options = {  # noqa: RUF012  (never changed)
        "--data": {"metavar": "FILE", "help": "labelled texts: CSV, TSV or JSON Lines, plain or gzip"},
        "--text-columns": {
            "nargs": "+",
            "metavar": "NAME",
            "help": "columns of the text, by name, or by number from 1 if there is no header [as in training, usually "
            "text]",
        },
        "--label-column": {
            "metavar": "NAME",
            "help": "column of the label, by name or number as well [as in training, usually label]",
        },
        "--picture": {"metavar": "FILE", "help": "draw the confusion matrix, as PNG or SVG"},
        "--plots": PLOTS_OPTION,
    }

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the output."""
        add_lines(parser, "TEXT", "a text to classify")
        parser.add_argument("--top", type=int, metavar="K", help="print the K likeliest classes, all if fewer [1]")
        parser.add_argument(
            "--json",
            action="store_true",
            help="print a JSON object per text: line, label, probabilities of all classes",
        )
        parser.add_argument(
            "--explain",
            action="store_true",
            help="also print each word with its effect, one after the other, the largest first: by how much the "
            "log-odds of the class (in nats) fall without the word; with --json as words, in the order of the text",
        )

    def run(self, arguments: argparse.Namespace) -> None:
        """Classify the texts, or the lines of standard input."""
        check_options(arguments)
        top = 1 if arguments.top is None else arguments.top
        if arguments.json and arguments.top is not None:
            raise UserError("--json prints all classes, so --top means nothing there; drop one of them.")
        if arguments.explain and top > 1:
            raise UserError("--explain is about the likeliest class, so --top means nothing there; drop one of them.")

        def answer(model: Any, lines: list[Line], report: Report) -> list[tuple[str, list[str]]]:
            texts = [line.text for line in lines]
            found = model.classify(texts, explain=arguments.explain, report=report, **_batch_size(arguments))
            return [
                ((_as_json(line.number, said) if arguments.json else _as_columns(top, said)) + "\n", [])
                for line, said in zip(lines, found, strict=True)
            ]

        def blank(number: int) -> str:
            return (_as_json(number, None) if arguments.json else "") + "\n"

        answer_lines(self, arguments, answer, blank)

    def evaluate(self, arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
        """Scores of the predicted classes; the confusion matrix also as a table on standard error, or a picture."""
        import numpy as np

        from transformer_jax import plots
        from transformer_jax.system import distributed
        from transformer_jax.tasks.classification.metrics import calibration, classification_scores, confusion_table

        picture = arguments.picture if arguments.picture and distributed.is_main() else None
        if picture is not None:
            plots.check_picture(picture)
        folder = plots.picture_folder(arguments.plots, [CONFUSION, RELIABILITY])
        classes = model.settings.classes
        records = _records(arguments, model)
        texts = [record.text for record in records]
        model.check(texts)
        share_out(model, arguments, records)

        def classify(texts: list[str], report: Report) -> list[list[float]]:
            found = model.probabilities(texts, report=report, **_batch_size(arguments))
            return [list(map(float, row)) for row in found]

        progress(f"classifying {len(records):,} texts")
        start = time.perf_counter()
        # In one window: the last digit depends on the shape of the batch, and only a few batches are held anyway.
        found = map_windows(classify, texts, self.working, "texts", window=len(texts))
        probabilities = np.array(found, np.float32)
        seconds = time.perf_counter() - start
        labels = np.array([classes.index(record.label) for record in records])
        scores = classification_scores(labels, probabilities, classes)
        progress("confusion matrix\n" + confusion_table(scores.confusion, classes))
        if picture is not None:
            plots.save_picture(picture, plots.confusion_matrix(scores.confusion, classes))
        if folder is not None:
            bins = calibration(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
            figures = plots.confusion_matrix(scores.confusion, classes), plots.reliability_diagram(*bins)
            plots.save_pictures(folder, dict(zip((CONFUSION, RELIABILITY), figures, strict=True)))
        per_class = {
            name: {
                "precision": float(scores.precision[c]),
                "recall": float(scores.recall[c]),
                "f1": float(scores.f1[c]),
                "support": int(scores.support[c]),
            }
            for c, name in enumerate(classes)
        }
        predicted = [classes[best] for best in probabilities.argmax(axis=1)]
        return {
            "accuracy": scores.accuracy,
            "macro_f1": scores.macro_f1,
            "expected_calibration_error": scores.expected_calibration_error,
            "classes": per_class,
            "confusion": scores.confusion.tolist(),
            "texts": len(records),
            **samples(arguments, texts, predicted, [record.label for record in records]),
            "seconds": round(seconds, 3),
        }


COMMAND = ClassifyCommand()


def _records(arguments: argparse.Namespace, model: Any) -> list[Labelled]:
    """The labelled texts of the file, or of the split of a configuration, that the arguments name."""
    from transformer_jax.tasks.classification import ClassificationConfig
    from transformer_jax.tasks.classification.sources import load_texts, load_training_data

    classes = model.settings.classes
    given = arguments.text_columns, arguments.label_column
    if arguments.data and not any((arguments.config, arguments.split, arguments.manual_dir)):
        columns = Columns(tuple(given[0] or model.settings.text_columns), given[1] or model.settings.label_column)
        return read_labelled(arguments.data, classes=classes, columns=columns)
    if not (arguments.config and arguments.split) or arguments.data or any(given):
        raise UserError(
            "evaluate needs, for a model of classification, either --data, or --config and --split (and "
            "--text-columns and --label-column with --data only)."
        )
    config = config_of(arguments)
    if arguments.split == "validation" and not config.data.validation_split:
        held_out = load_training_data(config.data, config.groups.get("classification", ClassificationConfig()))
        records, theirs = list(held_out.validation), held_out.classes
    else:
        found, theirs = load_texts(config.data, arguments.split)
        records = list(found)
    if set(theirs) - set(classes):
        unknown = ", ".join(sorted(set(theirs) - set(classes)))
        raise UserError(f"{arguments.config} has classes that the model has not seen ({unknown}); name another.")
    return records


def _batch_size(arguments: argparse.Namespace) -> dict[str, int]:
    return {} if arguments.batch_size is None else {"batch_size": arguments.batch_size}


def _as_columns(top: int, said: "Classification") -> str:
    # The sort is stable, so the label stays first among equals.
    likeliest = sorted(said.probabilities.items(), key=lambda item: -item[1])[:top]
    columns = [f"{name}\t{share:.4f}" for name, share in likeliest]
    words = sorted(said.words or (), key=lambda word: -abs(word.effect))
    return "\t".join([*columns, *(f"{word.text}\t{word.effect:+.4f}" for word in words)])


def _as_json(number: int, said: "Classification | None") -> str:
    """The object for a line; None: it could not be done."""
    if said is None:
        return json.dumps({"line": number, "label": None, "probabilities": None})
    probabilities = {name: round(share, 6) for name, share in said.probabilities.items()}
    values: dict[str, Any] = {"line": number, "label": said.label, "probabilities": probabilities}
    if said.words is not None:
        values["words"] = [word._replace(effect=round(word.effect, 4))._asdict() for word in said.words]
    return json.dumps(values, ensure_ascii=False)
