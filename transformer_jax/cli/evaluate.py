"""transformer-jax evaluate: a model's scores on a test set."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformer_jax.system.errors import UserError
from transformer_jax.tasks.command_line import (
    ALPHA_HELP,
    add_model,
    add_search,
    not_for_this_command,
    progress,
    share_out,
    write_report,
)

if TYPE_CHECKING:
    from transformer_jax.config import DataConfig
    from transformer_jax.tasks.classification.text_classifier import TextClassifier
    from transformer_jax.tasks.couplets.writer import CoupletWriter
    from transformer_jax.tasks.translation.translator import Translator

Pairs = Sequence[tuple[str, str]]
Scored = Sequence[tuple[float, int]]
"""Of each reference the log-probability and the number of tokens, end of sentence included."""


def add_command(commands: Any) -> None:
    """Add this command to those of the parser."""
    evaluate = commands.add_parser(
        "evaluate",
        help="score a model on a test set",
        description="Score a model on a test set and print one JSON object. Translation: sacreBLEU cased and "
        "lower-cased, chrF, their signatures, exact matches, perplexity of the references per token and per character. "
        "Classification: accuracy, macro-F1, precision, recall and F1 of each class, confusion matrix, expected "
        "calibration error. Couplets: perplexity per character, sacreBLEU over characters, distinct-n, the share of "
        "lines that keep each rule; with --config also for upper lines apart that training has (seen) and has not "
        "seen (unseen). Seconds include compilation.",
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    add_model(evaluate)
    add_search(evaluate)
    evaluate.add_argument("--alpha", type=float, metavar="X", help=ALPHA_HELP)
    evaluate.add_argument("--rules", metavar="RULES", help="of couplets, see transformer-jax couplet [the model's]")
    evaluate.add_argument("--data", metavar="FILE", help="labelled texts: CSV, TSV or JSON Lines, plain or gzip")
    evaluate.add_argument("--picture", metavar="FILE", help="draw the confusion matrix, as PNG or SVG")
    evaluate.add_argument("--source", metavar="FILE", help="sentences or upper lines, one a line, plain or gzip")
    evaluate.add_argument("--reference", metavar="FILE", help="what answers them, aligned line by line")
    evaluate.add_argument("--config", metavar="FILE[:ARG]", help="take the data of this configuration (or config.json)")
    evaluate.add_argument("--split", metavar="NAME", help="which split of it, such as test_2016_flickr")
    evaluate.add_argument("--manual-dir", metavar="DIR", help="folder with the set's raw files")
    evaluate.add_argument(
        "--samples", type=int, default=0, metavar="N", help="report the first N inputs, outputs and references too [0]"
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    from transformer_jax.tasks.classification.text_classifier import TextClassifier
    from transformer_jax.tasks.couplets.writer import CoupletWriter
    from transformer_jax.tasks.model_folder import load
    from transformer_jax.tasks.translation.translator import Translator

    model = load(arguments.model)
    if isinstance(model, TextClassifier):
        report = _classification(arguments, model)
    elif isinstance(model, CoupletWriter):
        report = _couplets(arguments, model)
    elif isinstance(model, Translator):
        report = _translation(arguments, model)
    else:
        raise not_for_this_command(arguments.model, model)
    write_report(report | {"model": arguments.model})


def _translation(arguments: argparse.Namespace, model: "Translator") -> dict[str, Any]:
    from transformer_jax.system import distributed
    from transformer_jax.tasks.metrics import exact_match
    from transformer_jax.tasks.translation.metrics import translation_scores
    from transformer_jax.tasks.translation.sources import load_pairs

    _refuse(arguments, "translation", "data", "picture", "rules")

    def load_split(data: "DataConfig", split: str) -> Pairs:
        for side in ("source_language", "target_language"):
            ours, theirs = getattr(model.settings, side), getattr(data, side)
            if ours and theirs != ours:
                raise UserError(f"{arguments.config}: config.data.{side} is {theirs!r}, but the model's is {ours!r}.")
        return load_pairs(data, split)

    pairs = _pairs(arguments, load_split)
    sources, references = [source for source, _ in pairs], [reference for _, reference in pairs]
    share_out(model, arguments, pairs, lambda: model.check_pairs(sources, references))

    def translate(texts: list[str]) -> list[str]:
        return model.translate(texts, beam_size=arguments.beam, alpha=arguments.alpha, batch_size=arguments.batch_size)

    scored = _scores(model, pairs)
    progress(f"translating {len(pairs):,} lines")
    start = time.perf_counter()
    outputs = distributed.parallel_map(translate, sources)
    seconds = time.perf_counter() - start
    decoding = model.settings.decoding
    return {
        **translation_scores(outputs, references),
        "exact_match": exact_match(outputs, references),
        **_perplexities(scored, references),
        "lines": len(pairs),
        **_samples(arguments, sources, outputs, references),
        "seconds": round(seconds, 3),
        "beam": decoding.beam_size if arguments.beam is None else arguments.beam,
        "alpha": decoding.alpha if arguments.alpha is None else arguments.alpha,
    }


def _couplets(arguments: argparse.Namespace, model: "CoupletWriter") -> dict[str, Any]:
    from transformer_jax.system import distributed
    from transformer_jax.tasks.couplets.judge import couplet_scores, rule_shares
    from transformer_jax.tasks.couplets.rules import Rules
    from transformer_jax.tasks.couplets.sources import load_couplets, load_training_data, seen_uppers, without_spaces

    _refuse(arguments, "couplets", "data", "picture", "alpha")
    decoding = model.settings.decoding
    rules = Rules.parse(decoding.rules if arguments.rules is None else arguments.rules)
    pairs = [(without_spaces(upper), without_spaces(lower)) for upper, lower in _pairs(arguments, load_couplets)]
    for number, (upper, lower) in enumerate(pairs, start=1):
        if not (upper and lower):
            where = f"{arguments.reference if upper else arguments.source}, line {number:,}"
            where = f"{arguments.config} {arguments.split}, couplet {number:,}" if arguments.config else where
            raise UserError(f"{where} is blank; write a line there, or drop the couplet.")
    uppers = [upper for upper, _ in pairs]
    share_out(model, arguments, pairs, lambda: model.check_pairs(uppers, [lower for _, lower in pairs]))

    def reply(uppers: list[str]) -> list[tuple[str, bool]]:
        found = model.search(uppers, rules=rules, beam_size=arguments.beam, batch_size=arguments.batch_size)
        return [(best.text, bool(best.gave_up)) for best, *_ in found]

    progress(f"writing lower lines to {len(pairs):,} upper lines")
    start = time.perf_counter()
    found = distributed.parallel_map(reply, uppers)
    seconds = time.perf_counter() - start
    groups = {"all": list(range(len(pairs)))}
    if arguments.config:
        config = _data_of(arguments)
        data = load_training_data(config)
        # A part that was cut out for validation stands in the training data too.
        seen = seen_uppers(uppers, data.train if config.validation_split else [*data.train, *data.validation])
        groups |= {
            name: [i for i, known in enumerate(seen) if known == wanted]
            for name, wanted in (("unseen", False), ("seen", True))
        }
    scored = _scores(model, pairs)
    report: dict[str, Any] = {}
    for name, members in groups.items():
        if not members:
            continue
        asked, written = [uppers[i] for i in members], [found[i][0] for i in members]
        references = [pairs[i][1] for i in members]
        report[name] = {
            "lines": len(members),
            **_perplexities([scored[i] for i in members], references),
            **couplet_scores(written, references),
            "keeps": rule_shares(asked, written),
            "references_keep": rule_shares(asked, references),
            "gave_up": sum(found[i][1] for i in members),
            **_samples(arguments, asked, written, references),
        }
    return report | {
        "rules": str(rules),
        "seconds": round(seconds, 3),
        "beam": decoding.beam_size if arguments.beam is None else arguments.beam,
    }


def _classification(arguments: argparse.Namespace, model: "TextClassifier") -> dict[str, Any]:
    import numpy as np

    from transformer_jax.system import distributed
    from transformer_jax.tasks.classification.labelled import read_labelled
    from transformer_jax.tasks.classification.metrics import (
        check_picture,
        classification_scores,
        confusion_table,
        save_confusion_picture,
    )
    from transformer_jax.tasks.classification.sources import load_texts

    _refuse(arguments, "classification", "source", "reference", "beam", "alpha", "rules")
    pictured = arguments.picture and distributed.is_main()
    if pictured:
        check_picture(arguments.picture)
    classes = model.settings.classes
    if arguments.data and not any((arguments.config, arguments.split, arguments.manual_dir)):
        records = read_labelled(arguments.data, classes=classes)
    elif arguments.config and arguments.split and not arguments.data:
        split, theirs = load_texts(_data_of(arguments), arguments.split)
        if set(theirs) - set(classes):
            unknown = ", ".join(sorted(set(theirs) - set(classes)))
            raise UserError(f"{arguments.config} has classes that the model has not seen ({unknown}); take another.")
        records = list(split)
    else:
        raise UserError("evaluate needs, for a model of classification, either --data, or --config and --split.")
    texts = [record.text for record in records]
    share_out(model, arguments, records, lambda: model.check(texts))
    batch_size = {} if arguments.batch_size is None else {"batch_size": arguments.batch_size}

    def classify(texts: list[str]) -> list[list[float]]:
        return model.probabilities(texts, **batch_size).tolist()

    progress(f"classifying {len(records):,} texts")
    start = time.perf_counter()
    probabilities = np.array(distributed.parallel_map(classify, texts), np.float32)
    seconds = time.perf_counter() - start
    scores = classification_scores(np.array([classes.index(r.label) for r in records]), probabilities, classes)
    progress("confusion matrix\n" + confusion_table(scores.confusion, classes))
    if pictured:
        save_confusion_picture(arguments.picture, scores.confusion, classes)
    per_class = {
        name: {
            "precision": float(scores.precision[c]),
            "recall": float(scores.recall[c]),
            "f1": float(scores.f1[c]),
            "support": int(scores.support[c]),
        }
        for c, name in enumerate(classes)
    }
    return {
        "accuracy": scores.accuracy,
        "macro_f1": scores.macro_f1,
        "expected_calibration_error": scores.expected_calibration_error,
        "classes": per_class,
        "confusion": scores.confusion.tolist(),
        "texts": len(records),
        **_samples(
            arguments,
            texts,
            [classes[best] for best in probabilities.argmax(axis=1)],
            [record.label for record in records],
        ),
        "seconds": round(seconds, 3),
    }


def _scores(model: "Translator | CoupletWriter", pairs: Pairs) -> Scored:
    from transformer_jax.system import distributed

    def score(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        scores = model.score([source for source, _ in pairs], [reference for _, reference in pairs])
        return [(score.log_prob, len(score.tokens)) for score in scores]

    progress(f"scoring {len(pairs):,} references")
    return [(log_prob, tokens) for log_prob, tokens in distributed.parallel_map(score, pairs)]


def _perplexities(scored: Scored, references: Sequence[str]) -> dict[str, float]:
    """Perplexity of the references: end of sentence included, over tokens with it and characters without."""
    from transformer_jax.tasks.metrics import perplexity

    nll = -sum(log_prob for log_prob, _ in scored)
    return {
        "perplexity_per_token": perplexity(nll, sum(tokens for _, tokens in scored)),
        "perplexity_per_character": perplexity(nll, sum(map(len, references))),
    }


def _samples(
    arguments: argparse.Namespace, inputs: Sequence[str], outputs: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """What was read, said and expected, for the first few."""
    rows = list(zip(inputs, outputs, references, strict=True))[: max(0, arguments.samples)]
    names = ("input", "output", "reference")
    return {"samples": [dict(zip(names, row, strict=True)) for row in rows]} if rows else {}


def _pairs(arguments: argparse.Namespace, load_split: Callable[["DataConfig", str], Pairs]) -> Pairs:
    """The pairs of the files, or of the split of a configuration, that the arguments name."""
    from transformer_jax.data.readers import read_pairs

    files, experiment = (arguments.source, arguments.reference), (arguments.config, arguments.split)
    if all(files) and not any((*experiment, arguments.manual_dir)):
        pairs: Pairs = read_pairs(*files)
    elif all(experiment) and not any(files):
        pairs = list(load_split(_data_of(arguments), arguments.split))
    else:
        raise UserError("evaluate needs either --source and --reference, or --config and --split.")
    if not any(reference for _, reference in pairs):
        raise UserError(f"{arguments.reference or arguments.split} has no reference text to score against.")
    return pairs


def _data_of(arguments: argparse.Namespace) -> "DataConfig":
    from transformer_jax.config import read_config

    data = read_config(arguments.config).data
    return data if arguments.manual_dir is None else dataclasses.replace(data, manual_dir=arguments.manual_dir)


def _refuse(arguments: argparse.Namespace, task: str, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} means nothing for a model of {task}; drop it.")
