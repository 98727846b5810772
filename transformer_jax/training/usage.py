"""How well a run uses its devices: speed, MFU, memory and, on request, a profiler trace."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from transformer_jax.data.packing import real_token_share
from transformer_jax.nn.losses import Batch
from transformer_jax.sharding import own_rows, row_shards
from transformer_jax.system.files import AnyPath
from transformer_jax.training.mirror import Mirror

CHIP_FLOPS = {
    "NVIDIA GB200": 2500e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
}
"""Peak 16-bit FLOP/s without sparsity, as published, by prefix of `device_kind`.

TPU v3: per core (half a chip), which JAX shows as a device."""

WARM_UP_STEPS = 10
"""Steps before a trace, while programs compile and queues fill."""
TRACED_STEPS = 10


def chip_flops(device_kind: str) -> float | None:
    """Published peak FLOP/s of a device, or None if it is not in the table."""
    return next((flops for name, flops in CHIP_FLOPS.items() if device_kind.startswith(name)), None)


def batch_stats(batch: Batch, flops: float) -> dict[str, float]:
    """Values to sum over training steps: `steps`, `fill` (share of real tokens), and `flops` spent on real tokens.

    Args:
        batch: the batch of a step.
        flops: FLOPs of the step, as `Task.flops` counts them.
    """
    fill = real_token_share(batch)
    return {"steps": 1.0, "fill": fill, "flops": fill * flops}


def usage(sums: Mapping[str, float], tokens_per_second: float, mesh: Mesh) -> dict[str, float]:
    """Speed per device, MFU and memory.

    Args:
        sums: over some steps: `weight`, the number of tokens, and the `batch_stats` of this process's batches, which
            stand for those of all processes.
        tokens_per_second: over the same steps.
        mesh: all devices of the run.

    Returns:
        `tokens_per_second_per_device`; `mfu`, the share of the published peak that goes into real tokens, if the peak
        is known; `memory_gb`, the highest use so far of the fullest device of this process, or of the process itself
        where devices do not report it.
    """
    found = {"tokens_per_second_per_device": tokens_per_second / mesh.size}
    peak = chip_flops(mesh.devices.flat[0].device_kind)
    parts = row_shards(mesh)
    flops = sums.get("flops", 0.0) * parts / len(own_rows(mesh, parts))
    if peak and flops and sums["weight"]:
        found["mfu"] = flops / sums["weight"] * tokens_per_second / (mesh.size * peak)
    memory = _peak_memory()
    return found | ({} if memory is None else {"memory_gb": memory / 1e9})


def _peak_memory() -> int | None:
    """Bytes."""
    of_devices = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in of_devices if stats and "peak_bytes_in_use" in stats]
    if peaks:
        return max(peaks)
    if sys.platform == "win32":
        return None
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


@dataclass
class Rate:
    """Training tokens per second, evaluations excluded."""

    tokens: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def take(self) -> float:
        """The rate since the last call."""
        rate = self.tokens / (time.monotonic() - self.started)
        self.tokens, self.started = 0.0, time.monotonic()
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        paused = time.monotonic()
        yield
        self.started += time.monotonic() - paused


class ProgramMemory(NamedTuple):
    """Bytes that a compiled program takes on each device."""

    arguments: int
    outputs: int
    """Without those that are written over donated arguments."""
    temporaries: int

    @property
    def total(self) -> int:
        """Upper bound on the bytes in use at a time."""
        return sum(self)


def program_memory(compiled: Any) -> ProgramMemory | None:
    """Memory of a `jax.stages.Compiled`, or None where XLA does not report it."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return ProgramMemory(found.argument_size_in_bytes, outputs, found.temp_size_in_bytes)


def describe(compiled: Any) -> list[str]:
    """Lines on the compiled step for the log; none where XLA does not report its memory."""
    memory = program_memory(compiled)
    if memory is None:
        return []
    parts = ", ".join(f"{size / 1e6:,.1f} MB {name}" for name, size in zip(memory._fields, memory, strict=True))
    return [f"A step takes {memory.total / 1e6:,.1f} MB of each device: {parts}"]


@contextlib.contextmanager
def traced(step: Callable[..., Any], folder: AnyPath | None, *, steps: int) -> Iterator[Callable[..., Any]]:
    """A context that yields `step` with some of its calls traced into `folder` (`train.py --profile`).

    Args:
        step: a jitted function.
        folder: gets `plugins/profile/TIME/`, with `HOST.xplane.pb` for TensorBoard's profile plugin and
            `perfetto_trace.json.gz` for https://ui.perfetto.dev; with several processes, in a subfolder per process.
            None disables tracing.
        steps: number of calls to come. If they are few, half of them are the warm-up.
    """
    if folder is None:
        yield step
        return
    mirror = Mirror(folder if jax.process_count() == 1 else folder / str(jax.process_index()))
    first = min(WARM_UP_STEPS, steps // 2)
    calls = 0
    is_tracing = False

    def traced_step(*arguments: Any) -> Any:
        nonlocal calls, is_tracing
        if calls == first:
            jax.profiler.start_trace(mirror.local, create_perfetto_trace=True)
            is_tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=calls):
            result = step(*arguments)
        calls += 1
        if calls == first + TRACED_STEPS:
            jax.block_until_ready(result)
            is_tracing = False
            jax.profiler.stop_trace()
        return result

    try:
        yield traced_step
    finally:
        if is_tracing:
            jax.profiler.stop_trace()
        mirror.close()
