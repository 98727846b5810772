"""`quality`: validation loss by training time, PyTorch on random batches against ours."""

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import OURS, Record, compare, device_name
from benchmarks.settings import Settings
from benchmarks.train import prepared
from benchmarks.workers import Worker
from benchmarks.workload import RANDOM_BATCH, Workload

MINUTES, QUICK_MINUTES = 20.0, 0.2
POINTS, QUICK_POINTS = 20, 2
"""Evaluations per run."""
SHARES = (0.2, 0.3, 0.5, 1.0)
"""Planned lengths of our runs, as shares of the peer's minutes, tried in turn until one reaches its loss."""
PEAK_LR = {"torch": 2e-3, OURS: 2e-3}
OUR_TOKENS = 1024
"""Token slots per side of our batches."""
RECIPE = "pre-norm, Adam (0.9, 0.98), linear warm-up over a tenth of the run, then half a cosine to 0"


class Point(NamedTuple):
    """One evaluation."""

    minutes: float
    """Training time with compilation, without evaluations and reading the data."""
    loss: float
    """Validation loss per token in nats, without label smoothing."""
    steps: int


def run(settings: Settings) -> Iterator[Record]:
    """Train the peer, or read its `--curve`; then train ours until it reaches the peer's final loss."""
    settings.folder("multi30k")
    with tempfile.TemporaryDirectory() as scratch:
        workload = prepared(settings, "multi30k", Path(scratch))
        if settings.curve is not None and settings.curve.is_file():
            theirs = read_curve(settings.curve)
            say(f"torch: {len(theirs)} points of {settings.curve}")
        else:
            minutes = settings.minutes or (QUICK_MINUTES if settings.quick else MINUTES)
            theirs = trained(settings, workload, "torch", minutes)
        yield from _records(settings, workload, theirs, *_ours(settings, workload, theirs))


def _ours(settings: Settings, workload: Workload, theirs: Sequence[Point]) -> tuple[float, list[Point]]:
    """Planned minutes and curve of our first run that reaches the peer's loss, or of the last one."""
    target = theirs[-1].loss
    for planned in _plans(settings, theirs):
        ours = trained(settings, workload, OURS, planned, until=target)
        if ours[-1].loss <= target:
            break
    return planned, ours


def _plans(settings: Settings, theirs: Sequence[Point]) -> list[float]:
    return [share * theirs[-1].minutes for share in ((1.0,) if settings.quick else SHARES)]


def trained(settings: Settings, workload: Workload, name: str, minutes: float, until: float = -math.inf) -> list[Point]:
    """The curve of one run, which stops early at the loss `until`; saves that of the peer to `--curve`."""
    factories: dict[str, tuple[Any, ...]] = {
        OURS: ("benchmarks.ours:learner", settings, workload, OUR_TOKENS),
        "torch": ("benchmarks.torch_training:learner", workload, settings.threads),
    }
    factory, *arguments = factories[name]
    points: list[Point] = []
    count = QUICK_POINTS if settings.quick else POINTS
    with Worker(factory, *arguments, PEAK_LR[name], minutes, count, threads=settings.threads) as worker:
        while len(points) < count and not (points and points[-1].loss <= until):
            point = Point(*worker.measure())
            points.append(point)
            say(f"{name}, planned for {minutes:.1f} minutes: {json.dumps(point._asdict())}")
            if settings.curve is not None and name != OURS:
                settings.curve.parent.mkdir(parents=True, exist_ok=True)
                settings.curve.write_text("".join(json.dumps(p._asdict()) + "\n" for p in points), "utf-8")
    return points


def read_curve(path: Path) -> list[Point]:
    """Points of a file written by `trained`."""
    return [Point(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def minutes_to(loss: float, curve: Sequence[Point]) -> float | None:
    """Time of the first evaluation with at most this loss; None if there is none."""
    return next((point.minutes for point in curve if point.loss <= loss), None)


def _records(
    settings: Settings, workload: Workload, theirs: Sequence[Point], planned: float, ours: Sequence[Point]
) -> Iterator[Record]:
    reached = minutes_to(theirs[-1].loss, ours)
    *shorter, longest = (f"{minutes:.1f}" for minutes in _plans(settings, theirs))
    plans = f"the first of plans of {', '.join(shorter)} and {longest} that reached it" if shorter else "the one plan"
    if reached is None:
        plans = "which did not reach it"
    work = (
        f"Multi30k de-en, {workload.shape}, one thread pool of {settings.threads}, float32; {RECIPE}; torch: "
        f"{RANDOM_BATCH} random sentences padded to the longest, peak learning rate {PEAK_LR['torch']:g}, "
        f"{theirs[-1].steps:,} steps in {theirs[-1].minutes:.1f} minutes; ours: {OUR_TOKENS:,} packed slots a side, "
        f"peak learning rate {PEAK_LR[OURS]:g}, planned for {planned:.1f} minutes, {plans}, {ours[-1].steps:,} steps "
        f"in {ours[-1].minutes:.1f}, compilation included; loss by minutes: torch {_curve(theirs)}; ours {_curve(ours)}"
    )
    if reached is None:
        say(f"ours did not reach {theirs[-1].loss:.3f}: {ours[-1].loss:.3f} after {ours[-1].minutes:.1f} minutes")
    device = device_name(settings.threads)
    minutes = ({} if reached is None else {OURS: [reached]}) | {"torch": [theirs[-1].minutes]}
    subject = "validation loss that PyTorch ends with"
    yield from compare("quality", subject, "minutes", minutes, work=work, device=device, more_is_better=False)
    losses = {OURS: [ours[-1].loss], "torch": [theirs[-1].loss]}
    subject = "validation loss at the end of the run"
    yield from compare("quality", subject, "nats", losses, work=work, device=device, more_is_better=False)


def _curve(points: Sequence[Point]) -> str:
    return ", ".join(f"{point.minutes:.1f}: {point.loss:.3f}" for point in points)


def say(line: str) -> None:
    """Print progress to stderr; stdout is for records."""
    print(line, file=sys.stderr, flush=True)
