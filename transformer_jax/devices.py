"""Work shared out among the devices of this process, for models that answer."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import jax
from jaxtyping import PyTree

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = {"cpu": 2}
"""Pieces of work that a device of this platform has in hand, elsewhere 1: small products leave cores of a CPU idle."""


def workers(arrays: PyTree) -> tuple[int, int]:
    """The devices of this process that hold these arrays, and the pieces of work that each has in hand."""
    devices = _devices(arrays)
    return len(devices), _at_once(devices)


def spread(work: Callable[[PyTree, Item], Result], items: Sequence[Item], arrays: PyTree) -> Iterator[Result]:
    """Yield `work(arrays, item)` for each item, in order, done by all devices of this process that hold `arrays`.

    If there are several, each that has work is given a copy. What has begun is finished even if another piece fails.
    """
    devices = _devices(arrays)
    # All devices before any has a second piece.
    seats = (devices * _at_once(devices))[: len(items)]
    copies = {device: arrays if len(devices) == 1 else jax.device_put(arrays, device) for device in set(seats)}
    if len(seats) <= 1:
        yield from (work(copies[seats[0]], item) for item in items)
        return
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in seats:
        free.put(device)

    def sit_down(item: Item) -> Result:
        device = free.get()
        try:
            return work(copies[device], item)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(seats), thread_name_prefix="device") as threads:
        yield from threads.map(sit_down, items)


def replicated(arrays: PyTree) -> PyTree:
    """The arrays on every device of this process, so that all of them share in the work."""
    mesh = jax.sharding.Mesh(jax.local_devices(), "device")
    return jax.device_put(arrays, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _at_once(devices: Sequence[jax.Device]) -> int:
    return AT_ONCE.get(devices[0].platform, 1)


def _devices(arrays: PyTree) -> list[jax.Device]:
    shardings = {leaf.sharding for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)}
    found = {device for sharding in shardings for device in sharding.addressable_devices}
    return sorted(found, key=lambda device: device.id) or jax.local_devices()[:1]
