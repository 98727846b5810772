"""`scaling`: fitted exponents of time and memory of a training step by length, vocabulary and depth."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from benchmarks.results import Record, device_name, installed_versions
from benchmarks.settings import Settings
from benchmarks.synthetic import UNCACHED, StepSize, SyntheticStep
from benchmarks.targets import is_accelerator
from benchmarks.workers import Worker
from transformer_jax.nn import ModelConfig
from transformer_jax.system import runtime

MODEL = ModelConfig(
    d_model=64,
    num_heads=4,
    d_ff=256,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=1000,
    target_vocab_size=1000,
)
SIZE = StepSize(MODEL, rows=8, length=64)
MIB = 2**20


def axes(*, quick: bool) -> dict[str, dict[int, StepSize]]:
    """Steps along each axis, by the growing number."""
    lengths = (32, 256, 1024) if quick else (32, 128, 512, 1024, 2048, 4096)
    vocabularies = (1000, 32_000) if quick else (1000, 4000, 16_000, 64_000)
    depths = (2, 24) if quick else (2, 8, 24, 48)
    return {
        "length": {n: replace(SIZE, rows=1, length=n) for n in lengths},
        "vocabulary": {
            n: replace(SIZE, model=replace(MODEL, source_vocab_size=n, target_vocab_size=n)) for n in vocabularies
        },
        "depth": {n: replace(SIZE, model=_deep(n)) for n in depths},
    }


def _deep(layers: int) -> ModelConfig:
    """A model with `layers` layers, half of them in the encoder; scanned, to compile fast."""
    return replace(MODEL, num_encoder_layers=layers // 2, num_decoder_layers=layers // 2, scan_layers=True)


def run(settings: Settings) -> Iterator[Record]:
    """Exponent and points of each axis."""
    device = device_name(settings.threads)
    runs = axes(quick=settings.quick)
    yield from _axes(runs, "", device, settings)
    if is_accelerator(device) and "TPU" not in device:
        fused = replace(MODEL, dtype="bfloat16", attention_implementation="cudnn")
        lengths = {n: replace(size, model=fused) for n, size in runs["length"].items()}
        yield from _axes({"length": lengths}, "fused attention: ", device, settings)


def _axes(runs: Mapping[str, Mapping[int, StepSize]], prefix: str, device: str, settings: Settings) -> Iterator[Record]:
    repeats = 3 if settings.quick else 5
    for axis, steps in runs.items():
        with Worker(build, list(steps.values()), repeats, threads=settings.threads, environment=UNCACHED) as worker:
            seconds, sizes = worker.measure()
        asked = fitted_exponent(dict(zip(steps, (size.flops for size in steps.values()), strict=True)))
        points = f"points {', '.join(f'{n:,}' for n in steps)}"
        smallest = next(iter(steps.values()))
        work = (
            f"least squares over the logarithms of {points}; its matrix products grow with exponent {asked:.2f}; at "
            f"the first point {smallest}; each time the median of {repeats}"
        )
        for quantity, unit, values in (("time", "ms", seconds), ("memory", "MiB", sizes)):
            subject = f"{prefix}{quantity} by {axis}"
            by_point = dict(zip(steps, values, strict=True))
            figures = [(subject, "exponent", fitted_exponent(by_point))]
            figures += [(f"{subject}: {n:,}", unit, value) for n, value in by_point.items()]
            for name, of_what, value in figures:
                yield Record("scaling", name, None, of_what, value, None, work, device, installed_versions())


def fitted_exponent(values: Mapping[int, float]) -> float:
    """The slope of log(value) over log(key), by least squares."""
    keys, logs = [math.log(n) for n in values], [math.log(value) for value in values.values()]
    return statistics.linear_regression(keys, logs).slope


def build(sizes: list[StepSize], repeats: int) -> Callable[[], tuple[list[float], list[float]]]:
    """Measures milliseconds and peak MiB of each step."""
    runtime.prepare()
    steps = [SyntheticStep(size) for size in sizes]
    for step in steps:
        step()

    def measure() -> tuple[list[float], list[float]]:
        # In rounds, so that a slow minute of the machine affects all points equally.
        rounds = [[1000 * step() for step in steps] for _ in range(repeats)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)], [s.peak_bytes / MIB for s in steps]

    return measure
