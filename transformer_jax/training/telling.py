"""What each process tells all others with every step, so that they decide alike and log what holds for all."""

import signal
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from transformer_jax import processes
from transformer_jax.steps import Sums

COUNTS = ("fill", "flops")
"""Of the batch of a process; see `usage.counts_of`."""
FLAGS = ("is_late", *(number.name for number in (signal.SIGINT, signal.SIGTERM)))
"""Whether a process is out of time, and the signals that it was sent."""

Told = Float[Array, "devices values"] | None
"""Of all devices what their process tells; None where there is but one process."""


def tell(values: Mapping[str, float], mesh: Mesh) -> Told:
    """An argument for the step.

    Args:
        values: of this process; those of `COUNTS` and `FLAGS` are told, and missing ones are 0.
        mesh: all devices of the run.
    """
    if processes.count() == 1:
        return None
    row = np.array([values.get(name, 0.0) for name in COUNTS + FLAGS], np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_process_local_data(sharding, np.tile(row, (len(mesh.local_devices), 1)))


def hear(told: Told) -> Sums:
    """Within the step: the mean of each value over all devices."""
    return {} if told is None else dict(zip(COUNTS + FLAGS, told.mean(axis=0), strict=True))
