"""The command `transformer-jax`: translate with a trained model, and score one."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_jax.errors import UserError
from transformer_jax.files import write_atomically

# JAX takes seconds to import; functions that need what is built on it import it late, so that --help is quick.
if TYPE_CHECKING:
    from transformer_jax.bundle import Translation, Translator


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status.

    0: done. 2: a mistake in the command line or its files, told in one sentence on stderr with nothing written.
    130: interrupted. 141: nobody reads the output any more.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except UserError as error:
        print(f"transformer-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The interpreter flushes stdout once more as it ends.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="transformer-jax",
        description="Translate with a trained Transformer, and score one.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

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
    _add_model_and_search(translate)
    translate.add_argument("texts", nargs="*", metavar="TEXT", help="a sentence to translate")
    translate.add_argument("--n-best", type=int, default=1, metavar="K", help="translations of each line [1]")
    translate.add_argument("--scores", action="store_true", help="print LINE<TAB>SCORE<TAB>TEXT")
    translate.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="above 0: draw instead of search [0]"
    )
    translate.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens [all]")
    translate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest P of all [1]")
    translate.add_argument("--seed", type=int, default=0, help="of what is drawn [0]")
    translate.add_argument("--min-length", type=int, default=0, metavar="N", help="tokens a translation must have [0]")
    translate.add_argument("--max-length", type=int, metavar="N", help="tokens a translation may have [input + 50]")
    translate.add_argument("--prefix", metavar="TEXT", help="how every translation must begin")
    translate.add_argument("--no-repeat-ngram", type=int, default=0, metavar="N", help="let no N tokens come twice")
    shape = translate.add_mutually_exclusive_group()
    shape.add_argument("--stream", action="store_true", help="print words as they come (greedy, or drawn)")
    shape.add_argument(
        "--alignment",
        action="store_true",
        help="print a JSON object per translation: line, score, text, source and target pieces, and the weights with "
        "which each target piece looked at each source piece, as the mean over layers and heads",
    )
    translate.add_argument("--output", metavar="FILE", help="write to FILE instead, whole or not at all")

    evaluate = commands.add_parser(
        "evaluate",
        help="score a model against reference translations",
        description="Translate a test set and print one JSON object: sacreBLEU cased and lower-cased, chrF, their "
        "signatures, the share of exact matches, perplexity of the references per token and per character, lines, and "
        "the seconds that translating took, compilation included.",
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    _add_model_and_search(evaluate)
    evaluate.add_argument("--source", metavar="FILE", help="sentences, one a line, plain or gzip")
    evaluate.add_argument("--reference", metavar="FILE", help="their translations, aligned line by line")
    evaluate.add_argument("--config", metavar="FILE[:ARG]", help="take the data of this configuration instead")
    evaluate.add_argument("--split", metavar="NAME", help="which split of it, such as test_2016_flickr")
    evaluate.add_argument("--manual-dir", metavar="DIR", help="folder with the set's raw files")
    return parser


def _add_model_and_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, such as runs/numerals/model")
    parser.add_argument("--beam", type=int, metavar="K", help="hypotheses kept in the search [the model's, usually 4]")
    parser.add_argument("--alpha", type=float, metavar="X", help="of the length penalty [the model's, usually 0.6]")
    parser.add_argument("--batch-size", type=int, metavar="N", help="sentences at a time; changes speed, not results")


def _translate(arguments: argparse.Namespace) -> None:
    from transformer_jax.bundle import load
    from transformer_jax.data.text import decode_lines

    if arguments.stream:
        for name, given in (
            ("--beam", arguments.beam is not None),
            ("--alpha", arguments.alpha is not None),
            ("--n-best", arguments.n_best > 1),
            ("--scores", arguments.scores),
            ("--output", arguments.output),
        ):
            if given:
                raise UserError(f"--stream cannot go with {name}; drop one of them.")
    texts = (
        [_checked_argument(text) for text in arguments.texts]
        if arguments.texts
        else decode_lines(sys.stdin.buffer.read(), "<stdin>")
    )
    model = load(arguments.model)
    options = {
        name: getattr(arguments, name)
        for name in ("temperature", "top_k", "top_p", "seed", "min_length", "max_length", "no_repeat_ngram")
    }
    options["prefix"] = None if arguments.prefix is None else _checked_argument(arguments.prefix)
    if arguments.stream:
        _stream(model, texts, options)
        return
    found = model.search(
        texts,
        beam_size=arguments.beam,
        alpha=arguments.alpha,
        batch_size=arguments.batch_size,
        return_attention=arguments.alignment,
        n_best=arguments.n_best,
        **options,
    )
    render = _as_json if arguments.alignment else _as_columns if arguments.scores or arguments.n_best > 1 else _as_text
    lines = [
        render(number, translation) + "\n"
        for number, translations in enumerate(found, start=1)
        for translation in translations
    ]
    _write("".join(lines), arguments.output)


def _stream(model: "Translator", texts: Sequence[str], options: dict[str, Any]) -> None:
    model.check(texts)
    for text in texts:
        for piece in model.stream(text, **options):
            _write(piece)
        _write("\n")


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


def _evaluate(arguments: argparse.Namespace) -> None:
    from transformer_jax.bundle import load
    from transformer_jax.metrics import exact_match, perplexity, translation_scores

    model = load(arguments.model)
    pairs = _evaluation_pairs(arguments, model)
    sources, references = [source for source, _ in pairs], [reference for _, reference in pairs]
    _progress(f"scoring {len(pairs):,} references")
    scored = model.score(sources, references)
    nll = -sum(score.log_prob for score in scored)
    _progress(f"translating {len(pairs):,} lines")
    start = time.perf_counter()
    hypotheses = model.translate(
        sources, beam_size=arguments.beam, alpha=arguments.alpha, batch_size=arguments.batch_size
    )
    seconds = time.perf_counter() - start
    decoding = model.settings.decoding
    report = {
        **translation_scores(hypotheses, references),
        "exact_match": exact_match(hypotheses, references),
        "perplexity_per_token": perplexity(nll, sum(len(score.tokens) for score in scored)),
        "perplexity_per_character": perplexity(nll, sum(map(len, references))),
        "lines": len(pairs),
        "seconds": round(seconds, 3),
        "beam": decoding.beam_size if arguments.beam is None else arguments.beam,
        "alpha": decoding.alpha if arguments.alpha is None else arguments.alpha,
        "model": arguments.model,
    }
    finite = {name: None if value == math.inf else value for name, value in report.items()}  # JSON has no infinity
    _write(json.dumps(finite, ensure_ascii=False) + "\n")


def _evaluation_pairs(arguments: argparse.Namespace, model: "Translator") -> list[tuple[str, str]]:
    from transformer_jax.config import from_config_dict, load_config_file
    from transformer_jax.data.sources import load_pairs
    from transformer_jax.data.text import read_pairs

    files, experiment = (arguments.source, arguments.reference), (arguments.config, arguments.split)
    if all(files) and not any((*experiment, arguments.manual_dir)):
        pairs = read_pairs(*files)
    elif all(experiment) and not any(files):
        data = from_config_dict(load_config_file(arguments.config)).data
        for side in ("source_language", "target_language"):
            ours, theirs = getattr(model.settings, side), getattr(data, side)
            if ours and theirs != ours:
                raise UserError(f"{arguments.config}: config.data.{side} is {theirs!r}, but the model's is {ours!r}.")
        if arguments.manual_dir is not None:
            data = dataclasses.replace(data, manual_dir=arguments.manual_dir)
        split = load_pairs(data, arguments.split)
        pairs = [split[i] for i in range(len(split))]
    else:
        raise UserError("evaluate needs either --source and --reference, or --config and --split.")
    if not any(reference for _, reference in pairs):
        raise UserError(f"{arguments.reference or arguments.split} has no reference text to score against.")
    return pairs


def _checked_argument(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 reach Python as lone surrogates
        raise UserError(f"The argument {text!r} is not UTF-8; mend it, or set the terminal to UTF-8.") from error
    return text


def _write(text: str, path: str | None = None) -> None:
    """Write UTF-8, whatever the locale, to standard output or, whole or not at all, to a file."""
    content = text.encode("utf-8")
    if path is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        write_atomically(Path(path), content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file.") from error


def _progress(message: str) -> None:
    print(f"transformer-jax: {message}", file=sys.stderr, flush=True)
