"""`memory`: peak bytes of a training step by batch, length, loss chunk and remat; compiled, not run."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.results import Record, device_name, installed_versions
from benchmarks.settings import Settings
from benchmarks.synthetic import UNCACHED, StepSize, SyntheticStep
from benchmarks.workers import Worker
from transformer_jax.nn import ModelConfig
from transformer_jax.system import runtime

MODEL = ModelConfig(norm_first=True, source_vocab_size=8000, target_vocab_size=8000)
SIZE = StepSize(MODEL, rows=32, length=64)
"""Model and batch of `train`."""
MIB = 2**20


def sizes(*, quick: bool) -> dict[str, StepSize]:
    """Steps to compile, by subject."""
    found = {f"batch of {rows * 64:,} tokens a side": replace(SIZE, rows=rows) for rows in (16, 32, 128)}
    for length in (256, 1024, 2048):
        found[f"rows of {length:,}, batch of 2,048"] = replace(SIZE, rows=2048 // length, length=length)
    for chunk in (128, 2048):
        whole = " (all logits at once)" if chunk == SIZE.tokens else ""
        found[f"loss in chunks of {chunk:,}{whole}"] = replace(SIZE, loss_chunk=chunk)
    for remat in ("dots", "full"):
        found[f"remat {remat}, batch of 8,192"] = replace(SIZE, model=replace(MODEL, remat=remat), rows=128)
    if quick:
        kept = ("2,048 tokens", "8,192 tokens", "remat full")
        return {name: size for name, size in found.items() if any(part in name for part in kept)}
    return found


def run(settings: Settings) -> Iterator[Record]:
    """Peak MiB of each step."""
    device = device_name(settings.threads)
    steps = sizes(quick=settings.quick)
    with Worker(build, list(steps.values()), threads=settings.threads, environment=UNCACHED) as worker:
        found = worker.measure()
    for (subject, size), need in zip(steps.items(), found, strict=True):
        work = f"{size}; by the compiler's memory_analysis()"
        yield Record("memory", subject, None, "MiB", need / MIB, None, work, device, installed_versions())


def build(steps: list[StepSize]) -> Callable[[], list[int]]:
    """Measures the peak bytes of each step."""
    runtime.prepare()
    return lambda: [SyntheticStep(size).peak_bytes for size in steps]
