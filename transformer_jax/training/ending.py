"""When a run ends before its last step: by a signal or by the clock, for all processes at the same step.

With each step every process tells all others how it stands, and hears it a step later, as it reads the metrics.
"""

import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from transformer_jax.nn.losses import Sums
from transformer_jax.system import distributed
from transformer_jax.training.progress import Clock, Stop

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
    if distributed.process_count() == 1:
        return None
    row = np.array([values.get(name, 0.0) for name in COUNTS + FLAGS], np.float32)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_process_local_data(sharding, np.tile(row, (len(mesh.local_devices), 1)))


def hear(told: Told) -> Sums:
    """Within the step: the mean of each value over all devices."""
    return {} if told is None else dict(zip(COUNTS + FLAGS, told.mean(axis=0), strict=True))


class Ending:
    """Whether it is time to save and end."""

    def __init__(self, stop: Stop, clock: Clock, mesh: Mesh) -> None:
        """Put together what is known of that.

        Args:
            stop: the signals that this process was sent.
            clock: of this process.
            mesh: all devices of the run.
        """
        self._stop, self._clock, self._mesh = stop, clock, mesh
        self._heard = dict.fromkeys(FLAGS, 0.0)

    def told(self, counts: Mapping[str, float]) -> Told:
        """What this process tells with the coming step, beside the counts of its batch."""
        flags = {"is_late": float(self._clock.is_late())}
        if self._stop.signal is not None:
            flags[signal.Signals(self._stop.signal).name] = 1.0
        return tell({**counts, **flags}, self._mesh)

    def heard(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Note what was told with a step; returns the rest of its sums."""
        self._heard = {name: float(sums.get(name, 0.0)) for name in FLAGS}
        return {name: value for name, value in sums.items() if name not in FLAGS}

    def is_due(self, step: int) -> bool:
        """Whether the run is to end after `step`; the same at all processes."""
        if distributed.process_count() == 1:
            return self._stop.signal is not None or self._clock.is_late()
        for number in (signal.SIGTERM, signal.SIGINT):
            if self._heard[number.name]:
                self._stop.agree(number)
        return any(self._heard.values())
