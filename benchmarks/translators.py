"""Translators of `decode`: ours, CTranslate2, transformers, and our model without a cache; each in its own process.

Each factory makes a function `translate(texts, beam_size)` that returns texts, and passes it to `measured`.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece

from benchmarks.settings import Unavailable

Translate = Callable[[list[str], int], list[str]]
GREEDY, BEAM = 1, 4
SEARCHES = {GREEDY: "greedy", BEAM: "beam 4"}
SOURCE_TOKENIZER, TARGET_TOKENIZER = "source.tokenizer.model", "target.tokenizer.model"
BATCH_SIZES = (32, 64, 128)
CHOOSING = 512
"""Number of texts that CTranslate2's setup is chosen on."""
TRANSFORMERS_BATCH = 64
LENGTH_STEP = 16
"""Without a cache, lengths are padded to multiples of it."""


@dataclass(frozen=True)
class Work:
    """Texts to translate, and how."""

    model: Path
    """A model folder."""
    exports: Path
    """The folder written by `export_all`."""
    texts: list[str]
    alone: list[str]
    """Texts translated one by one."""
    alpha: float
    """Exponent of the length penalty."""
    max_extra_tokens: int
    """An output is at most this many tokens longer than its source."""
    threads: int
    accelerator: bool
    """Compute in bfloat16 instead of float32."""

    @property
    def dtype(self) -> str:
        """Of all computation, except for int8 weights."""
        return "bfloat16" if self.accelerator else "float32"


class Found(NamedTuple):
    """One repetition."""

    seconds: dict[int, float]
    """For all texts, by beam size."""
    texts: dict[int, list[str]]
    tokens: dict[int, int]
    """Of these texts, by our tokenizer."""
    milliseconds: dict[int, float]
    """Median for a single text; empty if not measured."""
    setup: str
    """The setup chosen in the warm-up."""


def export_all(model: Path, folder: Path) -> Callable[[], tuple[float, int]]:
    """Export `model` to the installed systems; the measurement returns its `alpha` and `max_extra_tokens`."""
    import transformer_jax
    from transformer_jax.data.sentencepiece_tokenizers import SentencePieceTokenizer
    from transformer_jax.interop.ctranslate2_export import export_ctranslate2
    from transformer_jax.interop.marian import export_marian
    from transformer_jax.system import UserError

    translator = transformer_jax.load(model)
    if not isinstance(translator, transformer_jax.Translator) or not isinstance(
        translator.tokenizer.target, SentencePieceTokenizer
    ):
        raise Unavailable(f"{model} is not a translator with sentencepiece vocabularies; name one with --model.")
    architecture = "pegasus" if translator.model_config.norm_first else "marian"
    export_marian(translator, folder / "transformers", architecture=architecture)
    for quantization in ("float32", "int8"):
        try:
            export_ctranslate2(translator, folder / quantization, quantization=quantization)
        except UserError:
            break  # not installed; its worker reports it
    decoding = translator.settings.decoding
    return lambda: (decoding.alpha, decoding.max_extra_tokens)


def measured(
    translate: Translate, work: Work, *, alone: Translate | None, setup: str = "", warm_up: int | None = None
) -> Callable[[], Found]:
    """Measures `translate` on all texts and, unless it is None, `alone` on single ones.

    The warm-up uses all texts, or the first `warm_up`.
    """

    def measure(texts: list[str]) -> Found:
        found = Found({}, {}, {}, {}, setup)
        for beam_size in (GREEDY, BEAM):
            translate(texts[:8], beam_size)  # the system may have taken memory while the process slept
            started = time.perf_counter()
            found.texts[beam_size] = translate(texts, beam_size)
            found.seconds[beam_size] = time.perf_counter() - started
            found.tokens[beam_size] = count_tokens(work.model, found.texts[beam_size])
            if alone is not None:
                times = [_seconds(alone, [text], beam_size) for text in work.alone]
                found.milliseconds[beam_size] = 1000 * statistics.median(times)
        return found

    measure(work.texts[:warm_up])
    return lambda: measure(work.texts)


def count_tokens(model: Path, texts: list[str]) -> int:
    """Number of tokens, without ends of sentences."""
    return sum(map(len, _processor(model, TARGET_TOKENIZER).encode(texts)))


def _processor(folder: Path, name: str) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer of a side; a folder in which both sides have the same one has a file without the side's name."""
    path = folder / name
    if not path.exists():
        path = folder / name.partition(".")[2]
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def _seconds(translate: Translate, texts: list[str], beam_size: int) -> float:
    started = time.perf_counter()
    translate(texts, beam_size)
    return time.perf_counter() - started


def ours(work: Work, conventions: str) -> Callable[[], Found]:
    """`Translator.translate`, with the search conventions of the named system."""
    model = _loaded(work)

    def translate(texts: list[str], beam_size: int) -> list[str]:
        return list(model.translate(texts, beam_size=beam_size, conventions=conventions))

    return measured(translate, work, alone=translate if conventions == "paper" else None)


def ctranslate2(work: Work, quantization: str) -> Callable[[], Found]:
    """CTranslate2 as in the README of an exported folder, with the fastest batch size and threads.

    These are chosen for each beam size, for many texts and for one.
    """
    import ctranslate2

    folder = work.exports / quantization
    source, target = _processor(folder, SOURCE_TOKENIZER), _processor(folder, TARGET_TOKENIZER)
    device = "cuda" if work.accelerator else "cpu"
    compute = work.dtype if quantization == "float32" else quantization

    def with_setup(engine: Any, batch_size: int) -> Translate:
        def translate(texts: list[str], beam_size: int) -> list[str]:
            sources = source.encode(texts, out_type=str)
            results = engine.translate_batch(
                sources,
                beam_size=beam_size,
                length_penalty=work.alpha,
                disable_unk=True,
                max_input_length=0,
                min_decoding_length=0,
                max_decoding_length=max(map(len, sources)) + work.max_extra_tokens,
                max_batch_size=batch_size,
            )
            return list(target.decode([result.hypotheses[0] for result in results]))

        return translate

    engines = {
        (inter, intra): ctranslate2.Translator(
            str(folder), device=device, compute_type=compute, inter_threads=inter, intra_threads=intra
        )
        for inter, intra in sorted({(1, 1), (1, work.threads), (work.threads, 1)})
    }
    many = {
        f"inter_threads={inter}, intra_threads={intra}, max_batch_size={size}": with_setup(engine, size)
        for (inter, intra), engine in engines.items()
        for size in BATCH_SIZES
        if inter * intra == work.threads
    }
    few = {f"intra_threads={intra}": with_setup(engine, 1) for (inter, intra), engine in engines.items() if inter == 1}
    sample = [work.texts[:CHOOSING]]
    best_many = {beam_size: _fastest(many, sample, beam_size) for beam_size in (GREEDY, BEAM)}
    best_few = {beam_size: _fastest(few, [[text] for text in work.alone], beam_size) for beam_size in (GREEDY, BEAM)}
    setup = "; ".join(
        f"{name}: {best_many[beam_size]}, one alone {best_few[beam_size]}" for beam_size, name in SEARCHES.items()
    )
    return measured(
        _by_beam({beam_size: many[name] for beam_size, name in best_many.items()}),
        work,
        alone=_by_beam({beam_size: few[name] for beam_size, name in best_few.items()}),
        setup=f"{setup}, the fastest of {len(many)} and {len(few)} in a warm-up",
    )


def _fastest(candidates: Mapping[str, Translate], calls: Sequence[list[str]], beam_size: int) -> str:
    """Name of the fastest over all calls, each measured twice."""
    times = {
        name: min(sum(_seconds(translate, texts, beam_size) for texts in calls) for _ in range(2))
        for name, translate in candidates.items()
    }
    return min(times, key=times.__getitem__)


def _by_beam(chosen: Mapping[int, Translate]) -> Translate:
    return lambda texts, beam_size: chosen[beam_size](texts, beam_size)


def transformers(work: Work) -> Callable[[], Found]:
    """`generate` on batches of `TRANSFORMERS_BATCH` sentences of similar length."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, MarianTokenizer

    torch.set_num_threads(work.threads)
    folder = work.exports / "transformers"
    tokenizer = MarianTokenizer.from_pretrained(folder)
    device = "cuda" if work.accelerator else "cpu"
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, work.dtype)).eval().to(device)

    @torch.inference_mode()
    def translate(texts: list[str], beam_size: int) -> list[str]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        outputs: dict[int, str] = {}
        for chosen in _slices(order, TRANSFORMERS_BATCH):
            batch = tokenizer([texts[i] for i in chosen], return_tensors="pt", padding=True).to(device)
            longest = batch["input_ids"].shape[1] + work.max_extra_tokens
            found = model.generate(**batch, num_beams=beam_size, max_length=None, max_new_tokens=longest)
            decoded = tokenizer.batch_decode(found, skip_special_tokens=True)
            outputs |= dict(zip(chosen, decoded, strict=True))
        return [outputs[i] for i in range(len(texts))]

    return measured(translate, work, alone=None, warm_up=TRANSFORMERS_BATCH)


def uncached(work: Work, sentences: int) -> Callable[[], Found]:
    """Our model, run on the whole prefix for every token, one sentence at a time, for a sample of the sentences."""
    import jax
    import numpy as np
    from flax import nnx

    from transformer_jax.data import SPECIAL_TOKENS

    translator = _loaded(work)
    tokenizer = translator.tokenizer
    step = max(1, len(work.texts) // sentences)
    chosen = work.texts[::step][:sentences]

    @jax.jit
    def next_token(params: Any, source: Any, target: Any, last: Any) -> Any:
        return nnx.merge(translator.graphdef, params)(source, target)[0, last].argmax()

    def one(text: str) -> str:
        source = [*tokenizer.source.encode(text), SPECIAL_TOKENS.eos]
        target = [SPECIAL_TOKENS.bos]
        while len(target) <= len(source) + work.max_extra_tokens:
            sides = (_row(source, np), _row(target, np))
            token = int(next_token(translator.params, *sides, len(target) - 1))
            if token == SPECIAL_TOKENS.eos:
                break
            target.append(token)
        return str(tokenizer.target.decode(target[1:]))

    def measure() -> Found:
        started = time.perf_counter()
        texts = [one(text) for text in chosen]
        seconds = time.perf_counter() - started
        return Found({GREEDY: seconds}, {GREEDY: texts}, {GREEDY: count_tokens(work.model, texts)}, {}, "")

    measure()
    return measure


def _row(ids: Sequence[int], np: Any) -> Any:
    row = np.zeros((1, -(-len(ids) // LENGTH_STEP) * LENGTH_STEP), np.int32)
    row[0, : len(ids)] = ids
    return row


def _loaded(work: Work) -> Any:
    """Our model, in the dtype of the work."""
    import transformer_jax
    from transformer_jax.system import runtime

    runtime.prepare()
    model = transformer_jax.load(work.model)
    config = replace(model.model_config, dtype=work.dtype)
    return transformer_jax.Translator(config, model.params, model.tokenizer, model.settings)


def _slices(items: Sequence[int], size: int) -> Iterator[list[int]]:
    remaining = iter(items)
    while chosen := list(itertools.islice(remaining, size)):
        yield chosen
