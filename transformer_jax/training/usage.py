"""How well a run uses its devices, for its log."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.data.collate import real_token_share
from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import own_rows, row_shards
from transformer_jax.training.flops import chip_flops, step_flops


def counts_of(batch: Any, config: ModelConfig) -> dict[str, float]:
    """What is to be summed over the steps of training: `steps`, `fill`, and `flops`, those for real tokens only."""
    fill = real_token_share(batch)
    return {"steps": 1.0, "fill": fill, "flops": fill * (step_flops(config, batch) or 0.0)}


def usage(sums: Mapping[str, float], tokens_per_second: float, mesh: Mesh) -> dict[str, float]:
    """Speed for each device, share of the speed that its maker promises (MFU), and memory.

    Args:
        sums: over some steps: `weight`, the number of tokens, and what `counts_of` gives for the batches of this
            process, which stand for those of all.
        tokens_per_second: in these steps.
        mesh: all devices of the run.

    Returns:
        `tokens_per_second_per_device`; `mfu`, unless the maker's figure is not known, without what is done for
        padding; `memory_gb`, the largest amount so far: of the fullest device of this process, or of the process
        itself where devices do not tell.
    """
    found = {"tokens_per_second_per_device": tokens_per_second / mesh.size}
    promised = chip_flops(mesh.devices.flat[0].device_kind)
    parts = row_shards(mesh)
    flops = sums.get("flops", 0.0) * parts / len(own_rows(mesh, parts))
    if promised and flops and sums["weight"]:
        found["mfu"] = flops / sums["weight"] * tokens_per_second / (mesh.size * promised)
    memory = _most_memory()
    return found | ({} if memory is None else {"memory_gb": memory / 1e9})


def _most_memory() -> int | None:
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
