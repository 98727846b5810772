"""Values exchanged between processes, as JSON through the key-value store of JAX's coordinator.

Any thread may use it, at any time. The collectives of `jax.experimental.multihost_utils` belong to the main thread, and
on CPUs Gloo announces them on standard output, which commands need for their results. Arrays go by `local_copy`.
With one process, everything returns at once.
"""

import base64
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from transformer_jax.system import UserError

JSON = Any
"""A value that `json` can write; tuples come back as lists."""
CHUNK_BYTES = 1 << 18
"""Size limit of a stored value: a larger message would delay heartbeats."""
MAX_PAUSE = 0.1
"""Seconds between two looks for a value, at most."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def process_count() -> int:
    """Number of processes that have met; 1 before `initialize`."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """Index of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is process 0, which decides for all and writes what is written once."""
    return process_index() == 0


class Exchange:
    """All-gather for one thread of each process."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        """Every process must create its exchanges in the same order."""
        self._name = f"exchange/{next(self._numbers)}"
        self._rounds = itertools.count()
        self._closed = threading.Event()

    def gather(self, value: JSON) -> list[JSON]:
        """The values of all processes, in the order of their indices; every process calls this equally often.

        Raises:
            RuntimeError: if this exchange is closed meanwhile.
        """
        if process_count() == 1:
            return [value]
        number = next(self._rounds)
        key, text = f"{self._name}/{number}", json.dumps(value)
        starts = range(0, len(text), CHUNK_BYTES)
        for i, start in enumerate(starts):
            put(f"{key}/{process_index()}/{i}", text[start : start + CHUNK_BYTES])
        put(f"{key}/chunks/{process_index()}", str(len(starts)))
        chunks = self._wait_for_all(f"{key}/chunks")
        texts = ["".join(get(f"{key}/{k}/{i}") for i in range(int(chunks[str(k)]))) for k in range(len(chunks))]
        if number and is_main():  # a process that has entered this round has read all of the one before
            delete(f"{self._name}/{number - 1}")
        return [json.loads(text) for text in texts]

    def close(self) -> None:
        """Make a waiting `gather`, and all later ones, raise."""
        self._closed.set()

    def _wait_for_all(self, key: str) -> dict[str, str]:
        """The values below `key`, once every process has stored one."""
        seconds = 0.001
        while not self._closed.wait(seconds):
            if len(found := get_all(key)) == process_count():
                return found
            seconds = min(2 * seconds, MAX_PAUSE)
        raise RuntimeError("The exchange with other processes was closed.")


_main_thread = Exchange()


# For main threads, which must call these in the same order in every process.


def all_gather(value: JSON) -> list[JSON]:
    """The values of all processes, in the order of their indices."""
    return _main_thread.gather(value)


def broadcast(value: JSON) -> JSON:
    """The value of process 0, on every process."""
    return all_gather(value if is_main() else None)[0]


def broadcast_files(files: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """The files of process 0 by name, on every process; the others may pass None."""
    own = {name: base64.b64encode(content).decode() for name, content in (files or {}).items()}
    return {name: base64.b64decode(content) for name, content in broadcast(own).items()}


def barrier() -> None:
    """Wait until every process has called this."""
    all_gather(None)


def assert_equal(settings: Mapping[str, JSON]) -> None:
    """Require the same settings on every process.

    Raises:
        UserError: on every process, naming the first setting that differs.
    """
    for other, theirs in enumerate(everyone := all_gather(dict(settings))):
        for name in sorted({*everyone[0], *theirs}):
            expected, found = everyone[0].get(name), theirs.get(name)
            if found != expected:
                raise UserError(
                    f"{name} is {found!r} at process {other}, but {expected!r} at process 0; start all with the same "
                    "command, program and data."
                )


def parallel_map(function: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """Apply `function` to items shared out among the processes; every process gets all results, in order.

    Args:
        function: maps a list of items to one result each, as values that `json` can write.
        items: the same on every process.
    """
    count = process_count()
    if count == 1:
        return list(function(list(items)))
    own = list(items[process_index() :: count])
    results: list[Any] = [None] * len(items)
    for index, share in enumerate(all_gather(list(function(own)) if own else [])):
        results[index::count] = share
    return results


def local_copy(tree: PyTree) -> PyTree:
    """Arrays that are sharded over all processes, replicated on the devices of this one.

    With one process, the arrays stay as they are.
    """
    if process_count() == 1:
        return tree
    meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(tree)}
    replicated = jax.device_put(tree, NamedSharding(meshes.pop(), PartitionSpec()))
    sharding = NamedSharding(Mesh(jax.local_devices(), "device"), PartitionSpec())

    def to_local(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return jax.tree.map(to_local, replicated)


# The key-value store. All of these raise `jax.errors.JaxRuntimeError` if process 0 is gone.


def put(key: str, value: str) -> None:
    """Store a value under a new key."""
    _client().key_value_set(f"transformer_jax/{key}", value)


def get(key: str, seconds: float = 60.0) -> str:
    """The value of a key that is set, or will be within `seconds`."""
    return _client().blocking_key_value_get(f"transformer_jax/{key}", round(1000 * seconds))


def get_all(key: str) -> dict[str, str]:
    """The values below `key/`, by the rest of their keys."""
    prefix = f"transformer_jax/{key}/"
    return {name.removeprefix(prefix): value for name, value in _client().key_value_dir_get(prefix)}


def delete(key: str) -> None:
    """Delete a key and all below `key/`."""
    _client().key_value_delete(f"transformer_jax/{key}")


def wait_at_barrier(name: str, seconds: float) -> None:
    """Wait at most `seconds` until every process is at the barrier of this name."""
    _client().wait_at_barrier(f"transformer_jax/{name}", round(1000 * seconds))


def _client() -> Any:
    """JAX's client of its coordinator, for which `jax.distributed` has no public name yet."""
    return multihost_utils.distributed.global_state.client
