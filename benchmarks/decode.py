"""`decode`: Multi30k's test sentences, greedy and with a beam of 4, against other systems with the same weights."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.results import OURS, Record, compare, device_name, installed_versions
from benchmarks.settings import Settings
from benchmarks.shipped import shipped_config
from benchmarks.targets import is_accelerator
from benchmarks.translators import GREEDY, SEARCHES, Found, Work, ctranslate2, export_all, ours, transformers, uncached
from benchmarks.workers import Worker, alternate, workers
from transformer_jax.data.readers import read_lines
from transformer_jax.system import runtime

TEST_SET = "test_2016_flickr.de.gz"
TRAINING_STEPS = 150
"""Steps to train a model if none is given; 50 with --quick."""
CONVENTIONS = {"ctranslate2": "CTranslate2", "transformers": "transformers"}
"""Search conventions, and the system that has them."""


def run(settings: Settings) -> Iterator[Record]:
    """Times, rates and the share of equal texts for all sentences; latency of single ones.

    Raises:
        Unavailable: if the data is missing, or other systems cannot run the model.
    """
    lines = read_lines(settings.folder("multi30k") / TEST_SET)
    device = device_name(settings.threads)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model, origin = _model(settings, scratch)
        with Worker(export_all, model, scratch, threads=settings.threads) as worker:
            alpha, max_extra_tokens = worker.measure()
        work = Work(
            model=model,
            exports=scratch,
            texts=lines[:64] if settings.quick else lines,
            alone=lines[::100] if settings.quick else lines[::20],
            alpha=alpha,
            max_extra_tokens=max_extra_tokens,
            threads=settings.threads,
            accelerator=is_accelerator(device),
        )
        factories = {
            OURS: (ours, work, "paper"),
            "ours ctranslate2": (ours, work, "ctranslate2"),
            "ctranslate2": (ctranslate2, work, "float32"),
            "ctranslate2_int8": (ctranslate2, work, "int8"),
            "transformers": (transformers, work),
        }
        if not settings.quick:
            factories["ours transformers"] = (ours, work, "transformers")
        few = 4 if settings.quick else 10
        engines = stack.enter_context(workers(factories, threads=settings.threads))
        slow = {name: engine for name, engine in engines.items() if "transformers" in name}
        fast = {name: engine for name, engine in engines.items() if name not in slow}
        found = alternate(fast, 3 if settings.quick else 5)
        found |= alternate(slow, 1 if settings.quick else 3)
        with workers({"uncached": (uncached, work, few)}, threads=settings.threads) as naive:
            found |= alternate(naive, 1)
    setups = {name: rounds[0].setup for name, rounds in found.items()}
    chosen = "".join(f"; {name}: {setup}" for name, setup in setups.items() if setup)
    described = f"{origin}, German to English, weights the same for all, {work.dtype}, length penalty {alpha}"
    yield from _records(found, work, f"{described}{chosen}", few, device)


def _records(
    found: Mapping[str, Sequence[Found]], work: Work, described: str, few: int, device: str
) -> Iterator[Record]:
    many = f"{len(work.texts):,} sentences"
    about = f"the first {many} of {TEST_SET}, text to text with tokenization; {described}"
    for beam_size, search in SEARCHES.items():
        groups = {"": (OURS, ("ctranslate2", "ctranslate2_int8", "transformers", "uncached"))} | {
            f", searched as {name} does": (f"ours {peer}", (peer,)) for peer, name in CONVENTIONS.items()
        }
        for suffix, (mine, peers) in groups.items():
            if mine not in found:
                continue
            chosen = {OURS: found[mine]} | {peer: found[peer] for peer in peers if peer in found}
            if beam_size != GREEDY:
                chosen.pop("uncached", None)
            elif "uncached" in chosen:
                tokens = found[OURS][0].tokens[GREEDY]
                chosen["uncached"] = [_scaled(one, tokens) for one in chosen["uncached"]]
            subject = f"{many}, {search}{suffix}"
            note = f"; uncached: {few} sentences, one at a time, scaled by tokens" if "uncached" in chosen else ""
            seconds = {name: [one.seconds[beam_size] for one in rounds] for name, rounds in chosen.items()}
            rates = {
                name: [one.tokens[beam_size] / one.seconds[beam_size] for one in rounds]
                for name, rounds in chosen.items()
            }
            for unit, values, better in (("s", seconds, False), ("tokens/s", rates, True)):
                yield from compare(
                    "decode", subject, unit, values, work=about + note, device=device, more_is_better=better
                )
            for peer in peers if suffix else ():
                if peer in found:
                    equal = statistics.mean(
                        map(str.__eq__, found[mine][0].texts[beam_size], found[peer][0].texts[beam_size])
                    )
                    yield Record(
                        "decode", f"{subject}: equal texts", peer, "share", equal, None, about, device,
                        installed_versions(),
                    )  # fmt: skip
        alone = {
            name: [one.milliseconds[beam_size] for one in found[name]]
            for name in (OURS, "ctranslate2", "ctranslate2_int8")
            if name in found
        }
        one_alone = f"{len(work.alone)} sentences of {TEST_SET} one by one, the median; {described}"
        yield from compare(
            "decode", f"one alone, {search}", "ms", alone, work=one_alone, device=device, more_is_better=False
        )


def _scaled(few: Found, tokens: int) -> Found:
    """The time for all sentences, extrapolated by tokens."""
    factor = tokens / few.tokens[GREEDY]
    return few._replace(seconds={GREEDY: few.seconds[GREEDY] * factor}, tokens={GREEDY: tokens})


def _model(settings: Settings, scratch: Path) -> tuple[Path, str]:
    """The folder of a model, and where it comes from."""
    if settings.model is not None:
        return settings.model, "the model that --model names"
    with Worker(train_briefly, settings, scratch / "training", threads=settings.threads):
        origin = f"configs/multi30k.py trained for {_steps(settings)} steps, as --model names none"
        return scratch / "training" / "model", origin


def _steps(settings: Settings) -> int:
    return TRAINING_STEPS // 3 if settings.quick else TRAINING_STEPS


def train_briefly(settings: Settings, workdir: Path) -> Callable[[], None]:
    """Train a model into `workdir`; finished when the worker is ready."""
    from transformer_jax.training import run as train

    runtime.prepare()
    config = shipped_config("multi30k", settings)
    training = dataclasses.replace(
        config.training, num_steps=_steps(settings), eval_every=1000, metric="loss", num_samples=0, ema_decay=0.0
    )
    # A barely trained model does not end its sentences, so evaluation would take longer than training.
    data = dataclasses.replace(config.data, validation_split="validation[:20]")
    decoding = dataclasses.replace(config.decoding, beam_size=1)
    optim = dataclasses.replace(config.optim, warmup_steps=_steps(settings) // 4)
    # Standard output is for records.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(dataclasses.replace(config, training=training, optim=optim, data=data, decoding=decoding), workdir)
    return lambda: None
