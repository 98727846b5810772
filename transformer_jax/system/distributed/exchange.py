"""Values that processes tell each other."""

import base64
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from transformer_jax.system.distributed import store
from transformer_jax.system.distributed.store import count, index, is_first
from transformer_jax.system.errors import UserError

JSON = Any
"""What `json` can write; tuples come back as lists."""
PIECE = 1 << 18
"""Bytes of a message, at most: one that takes long would hold heartbeats up."""
LONGEST_PAUSE = 0.1
"""Seconds until a value that was not there is asked for again."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Exchange:
    """Rounds in which every process gives a value and gets those of all; one thread at a time."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        """Every process must make its exchanges in the same order."""
        self._name = f"exchange/{next(self._numbers)}"
        self._rounds = itertools.count()
        self._closed = threading.Event()

    def gather(self, value: JSON) -> list[JSON]:
        """The values of all processes, in their order. Every process must call this equally often.

        Raises:
            RuntimeError: if this exchange was closed meanwhile.
        """
        if count() == 1:
            return [value]
        number = next(self._rounds)
        self._put(f"{self._name}/{number}/{index()}", json.dumps(value))
        values = [json.loads(self._find(f"{self._name}/{number}/{other}")) for other in range(count())]
        if number:  # who took part in this round has read all of the one before
            store.delete(f"{self._name}/{number - 1}/{index()}")
        return values

    def close(self) -> None:
        """Wait for nobody any more."""
        self._closed.set()

    def _put(self, key: str, text: str) -> None:
        pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
        for number, piece in enumerate(pieces):
            store.put(f"{key}/{number}", piece)
        store.put(key, str(len(pieces)))

    def _find(self, key: str) -> str:
        pieces = int(self._wait_for(key))
        return "".join(self._wait_for(f"{key}/{number}") for number in range(pieces))

    def _wait_for(self, key: str) -> str:
        seconds = 0.001
        while not self._closed.wait(seconds):
            value = store.find(key)
            if value is not None:
                return value
            seconds = min(2 * seconds, LONGEST_PAUSE)
        raise RuntimeError("The exchange with other processes was closed.")


def gather(value: JSON) -> list[JSON]:
    """The values of all processes, in their order; called by the main threads of all of them at the same place."""
    return _main.gather(value)


def first_says(value: JSON) -> JSON:
    """The value of the first process, at all of them; called by the main threads of all at the same place."""
    return gather(value if is_first() else None)[0]


def wait_for_all() -> None:
    """Return when all have come here."""
    gather(None)


def files_of_first(files: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """The files that the first process gives, by name, at all of them."""
    own = {name: base64.b64encode(content).decode() for name, content in files.items()} if files is not None else {}
    return {name: base64.b64decode(content) for name, content in first_says(own).items()}


def agree(settings: Mapping[str, JSON]) -> None:
    """Refuse to go on if a setting is not the same at all processes.

    Raises:
        UserError: at all of them alike.
    """
    for other, theirs in enumerate(everyone := gather(dict(settings))):
        for name in sorted({*everyone[0], *theirs}):
            first, value = everyone[0].get(name), theirs.get(name)
            if first != value:
                raise UserError(
                    f"{name} is {value!r} at process {other}, but {first!r} at process 0; start all with the same "
                    "command, program and data."
                )


def deal(work: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """The results of `work` on items, in order, each of which one process does: all get all.

    Args:
        work: gives a result for each of some items; results must be what `json` can write.
        items: the same at all processes.
    """
    if count() == 1:
        return list(work(list(items)))
    own = list(items[index() :: count()])
    shares = gather(list(work(own)) if own else [])
    results: list[Any] = [None] * len(items)
    for number, share in enumerate(shares):
        results[number :: count()] = share
    return results


def local_copy(tree: PyTree) -> PyTree:
    """Arrays that are spread over all processes, whole on each device of this one; called by all at the same place.

    With one process, they stay where they are.
    """
    if count() == 1:
        return tree
    meshes = {leaf.sharding.mesh for leaf in jax.tree.leaves(tree)}
    whole = jax.device_put(tree, NamedSharding(meshes.pop(), PartitionSpec()))
    here = NamedSharding(Mesh(jax.local_devices(), "device"), PartitionSpec())

    def own(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, here, parts)

    return jax.tree.map(own, whole)


_main = Exchange()
