"""`roofline`: speed of a training step as a share of the machine's matrix-product speed (MFU on accelerators).

For comparison, the same step in PyTorch.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax

from benchmarks.results import OURS, Record, compare, device_name, installed_versions
from benchmarks.settings import Settings, Unavailable
from benchmarks.synthetic import UNCACHED, StepSize, SyntheticStep
from benchmarks.targets import is_accelerator
from benchmarks.workers import alternate, workers
from transformer_jax.nn import ModelConfig
from transformer_jax.system import runtime
from transformer_jax.training.usage import chip_flops

VOCAB_SIZE = 32_000
BASE = ModelConfig(
    d_model=512,
    num_heads=8,
    d_ff=2048,
    num_encoder_layers=6,
    num_decoder_layers=6,
    source_vocab_size=VOCAB_SIZE,
    target_vocab_size=VOCAB_SIZE,
)
"""The paper's base model (table 3)."""
BIG = replace(BASE, d_model=1024, num_heads=16, d_ff=4096, dropout_rate=0.3)
"""The paper's big model."""
SIDES = (1024, 2048, 3072)
"""Sides of the square matrices; the fastest product counts."""
CHIP_SIDES = (4096, 8192)


def run(settings: Settings) -> Iterator[Record]:
    """The share at the base size and, on accelerators, at the big one too.

    Raises:
        Unavailable: never on CPUs; on others, if `training.usage` has no figure of the chip.
    """
    device = device_name(settings.threads)
    if is_accelerator(device):
        rows = {"base": 64, "big": 32} if settings.quick else {"base": 128, "big": 64}
        common = {"length": 256, "sentence_length": 32}
        fast: dict[str, Any] = {
            "dtype": "bfloat16",
            "attention_implementation": "cudnn" if "TPU" not in device else "xla",
        }
        for name, model in (("base", BASE), ("big", BIG)):
            yield from _share(name, StepSize(replace(model, **fast), rows=rows[name], **common), device, settings)
    else:
        yield from _share("base", StepSize(BASE, rows=8, length=128, sentence_length=32), device, settings)


def _share(name: str, size: StepSize, device: str, settings: Settings) -> Iterator[Record]:
    if is_accelerator(device):
        sides, repeats = CHIP_SIDES, 3 if settings.quick else 5
    else:
        sides, repeats = SIDES, 1 if settings.quick else 3  # as each step takes seconds
    torch = ("benchmarks.torch_step:build", size, settings.threads)
    factories: dict[str, tuple[Any, ...]] = {
        OURS: (build_step, size),
        "product": (build_product, sides, size.model.dtype),
        "torch": (*torch, False),
    }
    if is_accelerator(device):
        factories["torch_compile"] = (*torch, True)
    with workers(factories, threads=settings.threads, environment=UNCACHED) as measured:
        found = alternate(measured, repeats)
    speed = size.flops / statistics.median(found[OURS])
    fastest = max(found.pop("product"))
    machine = f"the fastest of {' '.join(f'{side:,}' for side in sides)} squared in {size.model.dtype}, by jax"
    peak = fastest
    if is_accelerator(device):
        published = chip_flops(device)
        if published is None:
            raise Unavailable(f"training/usage.py has no published figure of {device}; add it to CHIP_FLOPS.")
        peak = published
    work = (
        f"{size}; {size.flops / 1e9:,.0f} GFLOP of matrix products as nn/model_config.py counts; median of {repeats}, "
        "each after one that is not timed"
    )
    for subject, unit, value, of_what in (
        (f"{name} size: training step", "share", speed / peak, work),
        (f"{name} size: training step", "GFLOP/s", speed / 1e9, work),
        ("product of two matrices", "GFLOP/s", fastest / 1e9, f"{machine}; the best of {repeats} times 5"),
        ("product of two matrices, published", "GFLOP/s", peak / 1e9, "the maker's figure in 16 bits, not sparse"),
    ):
        if "published" not in subject or is_accelerator(device):
            yield Record("roofline", subject, None, unit, value, None, of_what, device, installed_versions())
    rates = {who: [size.tokens / seconds for seconds in times] for who, times in found.items()}
    beside = f"{size}, target tokens; PyTorch: nn.Transformer with the same rows and dropout, a mask for each row"
    yield from compare(
        "roofline", f"{name} size: training step", "tokens/s", rates, work=beside, device=device, more_is_better=True
    )


def build_step(size: StepSize) -> Callable[[], float]:
    """Measures the seconds of a step."""
    runtime.prepare()
    step = SyntheticStep(size)
    step()

    def measure() -> float:
        step()  # not timed: the system may have taken memory while the process slept
        return step()

    return measure


def build_product(sides: tuple[int, ...], dtype: str) -> Callable[[], float]:
    """Measures FLOP/s of the fastest product of square matrices."""
    runtime.prepare()
    product = jax.jit(lambda a, b: a @ b)
    matrices = {side: jax.random.normal(jax.random.key(side), (side, side)).astype(dtype) for side in sides}

    def measure() -> float:
        fastest = 0.0
        for side, matrix in matrices.items():
            for _ in range(5):
                started = time.perf_counter()
                product(matrix, matrix).block_until_ready()
                fastest = max(fastest, 2 * side**3 / (time.perf_counter() - started))
        return fastest

    measure()
    return measure
