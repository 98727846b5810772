"""`train`: training speed in real tokens per second, ours and the peers'."""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import OURS, Record, compare, device_name
from benchmarks.settings import Settings, Unavailable
from benchmarks.workers import Worker, alternate, workers
from benchmarks.workload import RANDOM_BATCH, Tally, Workload

REPEATS, QUICK_REPEATS = 5, 3
TORCH = "benchmarks.torch_training:trainer"
OPTIMIZER = "Adam (Marian: AdamW), fused in PyTorch"
DATA_SETS = (
    ("multi30k", "translation", "target tokens"),
    ("ag_news", "classifier", "tokens of texts"),
    ("couplet", "couplets", "target characters"),
)
"""Data set, subject, and the counted tokens."""


def run(settings: Settings) -> Iterator[Record]:
    """Translation (Multi30k, de-en), then a classifier (AG News), then couplets; only the first with --quick.

    Raises:
        Unavailable: if all data is missing.
    """
    left_out: list[Unavailable] = []
    data_sets = DATA_SETS[:1] if settings.quick else DATA_SETS
    for name, subject, tokens in data_sets:
        try:
            yield from _run(settings, name, subject, tokens)
        except Unavailable as reason:
            print(f"train, {subject}, is left out: {reason}", file=sys.stderr, flush=True)
            left_out.append(reason)
    if len(left_out) == len(data_sets):
        raise left_out[0]


def _run(settings: Settings, name: str, subject: str, tokens: str) -> Iterator[Record]:
    settings.folder(name)
    with_all_peers = name == "multi30k"
    steps, repeats = (1, QUICK_REPEATS) if settings.quick else (2, REPEATS)
    with tempfile.TemporaryDirectory() as scratch:
        workload = prepared(settings, name, Path(scratch))
        torch = (TORCH, workload, settings.threads, steps)
        factories: dict[str, tuple[Any, ...]] = {
            OURS: ("benchmarks.ours:trainer", settings, workload, steps),
            "torch": (*torch, {}),
        }
        if with_all_peers:
            factories |= {
                "torch, our batches": (*torch, {"packed": True}),
                "transformers": ("benchmarks.marian_training:trainer", workload, settings.threads, steps),
            }
            if not settings.quick:
                options = {"packed": True, "our_dropout": True}
                factories |= {
                    "torch, our dropout": (*torch, options),
                    "torch_compile, our dropout": (*torch, options | {"compiled": True}),
                }
        with workers(factories, threads=settings.threads) as measured:
            tallies: dict[str, list[Tally]] = alternate(measured, repeats)
    unit, device = "tokens/s", device_name(settings.threads)

    def work(theirs: str) -> str:
        return (
            f"{workload.name}, {workload.shape}, float32; {tokens}, padding excluded; {repeats} repetitions in turn "
            f"of {steps} step{'s' * (steps > 1)} after one that is not timed (forward, backward, {OPTIMIZER}); "
            f"ours: rows of {workload.row_length} packed to {workload.tokens_per_batch:,} slots a side"
            f"{_padding(tallies.get(OURS))}; "
            f"peers: {theirs}"
        )

    def rates(*names: str) -> dict[str, list[float]]:
        found = {name: tallies[name] for name in names if name in tallies}
        return {name.partition(",")[0]: [tally.rate for tally in of_name] for name, of_name in found.items()}

    def records(what: str, theirs: str, *names: str, alone: bool = False) -> Iterator[Record]:
        figures, about = rates(OURS, *names), work(theirs)
        if figures.keys() == {OURS} and not alone:
            return
        yield from compare("train", f"{subject}, {what}", unit, figures, work=about, device=device, more_is_better=True)

    padding = _padding(tallies.get("torch"))
    marian = "; transformers: without label smoothing, which Marian's loss does not have" if with_all_peers else ""
    dropout = "PyTorch's layers also drop attention weights and inside the feed-forward layer"
    yield from records(
        f"random batches of {RANDOM_BATCH}",
        f"{RANDOM_BATCH} random sentences padded to the longest{padding}; {dropout}{marian}",
        "torch",
        "transformers",
        alone=True,
    )
    if with_all_peers:
        same = "the same packed rows as ours, under a mask for each"
        yield from records("our batches", f"{same}; {dropout}", "torch, our batches")
        yield from records(
            "our batches and dropout",
            f"{same}; dropout only where ours has it",
            "torch, our dropout",
            "torch_compile, our dropout",
        )


def prepared(settings: Settings, name: str, scratch: Path) -> Workload:
    """Train the tokenizer and encode the data, in a separate process."""
    with Worker("benchmarks.ours:prepare", settings, name, scratch, threads=settings.threads) as worker:
        workload: Workload = worker.measure()
    return workload


def _padding(tallies: Sequence[Tally] | None) -> str:
    if not tallies:
        return ""
    share = statistics.fmean(1 - tally.real / tally.slots for tally in tallies)
    return f" ({100 * share:.1f} % of the slots padding)"
