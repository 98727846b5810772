"""Chips and slices that `tpu_compile` compiles for."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chip:
    """What Google's pages on the chip say (cloud.google.com/tpu/docs); `training.usage` has their peak FLOP/s."""

    kind: str
    """`device_kind` in JAX."""
    memory: float
    """Bytes of HBM."""
    moves: float
    """HBM bandwidth in bytes per second."""
    sends: float
    """Bytes per second to other chips over all links: half of the published bidirectional bandwidth."""
    unit: int
    """Rows and columns of its matrix units."""


CHIPS = {
    "v5e": Chip("TPU v5 lite", memory=16e9, moves=819e9, sends=200e9, unit=128),
    "v6e": Chip("TPU v6 lite", memory=32e9, moves=1638e9, sends=400e9, unit=256),
    "v5p": Chip("TPU v5", memory=95e9, moves=2765e9, sends=600e9, unit=128),
}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "v5e:1x1": {"chips_per_host_bounds": (1, 1, 1)},
    "v5e:2x4": {},
    "v5e:16x16": {},
    "v6e:2x4": {},
    "v5p:2x2x2": {},
}
"""Slices, and further options that describe them to libtpu."""

NOT_THERE = "compiled for "
"""Prefix of `device` in the records of `tpu_compile`."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:2x4"."""
    return CHIPS[topology.partition(":")[0]]
