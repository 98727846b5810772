"""Where arrays live: the mesh of devices, the rules that partition parameters over it, and the rows of a batch.

The mesh has three axes: `data` splits the batch; `fsdp` splits the batch and the parameters, gathered for use;
`tensor` splits heads, the feed-forward width and the vocabulary. XLA derives all other layouts and the communication.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from transformer_jax.system import UserError, check_fields

try:
    from jax import enable_x64
except ImportError:  # before jax 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined, no-redef]

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Result = TypeVar("Result")

# The caller's settings of JAX.


@contextmanager
def standard_numerics() -> Iterator[None]:
    """Compute as under JAX's defaults, whatever the caller has set; a context manager and a decorator.

    That is, without 64-bit types, with all promotions and transfers, with the usual generator of random numbers, and
    with infinities, which mark what a search forbids. The settings belong to the thread, and to what is traced in it.
    """
    with ExitStack() as settings:
        settings.enter_context(enable_x64(False))
        settings.enter_context(jax.numpy_dtype_promotion("standard"))
        settings.enter_context(jax.numpy_rank_promotion("allow"))
        settings.enter_context(jax.transfer_guard("allow"))
        settings.enter_context(jax.default_prng_impl("threefry2x32"))
        settings.enter_context(jax.threefry_partitionable(True))
        settings.enter_context(jax.debug_infs(False))
        yield


# The mesh.

AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis; -1 for all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "config.mesh.{}".format)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices along the three axes.

    Args:
        config: size of each axis.
        devices: default: all devices of all processes.

    Raises:
        UserError: if the sizes don't fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    given = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    product = 1
    for size in sizes:
        product *= 1 if size == -1 else size
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"config.mesh is {given}, but sizes must be positive, and at most one of them -1.")
    if len(devices) % product or (-1 not in sizes and product != len(devices)):
        raise UserError(
            f"config.mesh is {given}, which does not fit the device count of {len(devices)}; "
            "the sizes must multiply to that (-1: what is left)."
        )
    shape = [len(devices) // product if size == -1 else size for size in sizes]
    # Explicit axes, the default, would need a layout at every embedding lookup.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_heads(num_heads: int, mesh: Mesh) -> None:
    """Require that the attention heads divide among the devices of the axis `tensor`.

    Raises:
        UserError: if they don't.
    """
    parts = mesh.shape["tensor"]
    if num_heads % parts:
        raise UserError(
            f"config.model.num_heads is {num_heads}, which does not divide into config.mesh.tensor={parts} "
            "parts; change one of them."
        )


# Parameters.

RULES: tuple[tuple[str, P], ...] = (
    # The first matrix of a pair is split by columns and the second by rows, so that one sum ends each sub-layer.
    (r"(query|key|value|wide)\.kernel", P("fsdp", "tensor")),
    (r"(query|key|value|wide)\.bias", P("tensor")),
    (r"(out|narrow)\.kernel", P("tensor", "fsdp")),
    (r"table", P("tensor", "fsdp")),
    (r"output_bias", P("tensor")),
    (r"learned", P(None, "fsdp")),
)
"""Regular expression for the end of a parameter's path, and the axes that split its dimensions.

Parameters that match no rule are small, and replicated.
"""
_IS_STACKED = re.compile(r"(^|\.)layers\.stacked\.")
"""Parameters of scanned layers, which have one more axis in front. It is not split."""
_IS_LAYER = re.compile(r"(^|\.)layers\.")


def partition_spec(path: str) -> P:
    """The rule for a path such as `encoder.layers.0.self_attention.query.kernel`, or P() if none matches.

    Raises:
        ValueError: if two rules match.
    """
    matching = [(pattern, spec) for pattern, spec in RULES if re.search(rf"(^|\.)({pattern})$", path)]
    if len(matching) > 1:
        raise ValueError(f"{path} matches the sharding rules {' and '.join(pattern for pattern, _ in matching)}.")
    if not matching:
        return P()
    return P(None, *matching[0][1]) if _IS_STACKED.search(path) else matching[0][1]


def state_shardings(tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """Shardings for parameters, or for a tree that contains trees of them, such as an optimizer state.

    Args:
        tree: arrays, or `jax.ShapeDtypeStruct`s.
        mesh: see `make_mesh`.

    Raises:
        UserError: if a dimension does not divide by the axis that splits it.
    """

    def sharding(path: tuple[object, ...], leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = partition_spec(name)
        # Some optimizers keep vectors or scalars under the path of a matrix; those are small.
        if len(spec) != leaf.ndim or leaf.size == 1:
            return NamedSharding(mesh, P())
        for size, axis in zip(leaf.shape, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                raise UserError(
                    f"{name} has a dimension of {size}, which does not divide into config.mesh.{axis}="
                    f"{mesh.shape[axis]} parts; change config.mesh, or the sizes in config.model and config.tokenizer."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


# Batches.

ROW_AXES = ("data", "fsdp")
"""The axes that split the rows of a batch."""
ROWS = P(ROW_AXES)


def row_shards(mesh: Mesh) -> int:
    """Number of parts into which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def own_rows(mesh: Mesh, num_rows: int) -> list[int]:
    """The rows of a batch that belong to devices of this process, in the order of `shard_batch`."""
    parts = NamedSharding(mesh, ROWS).addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for part in parts if part is not None for row in range(*part[0].indices(num_rows))})


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Put a batch on the devices, its rows split over `data` and `fsdp`.

    Args:
        batch: numpy arrays with a leading row axis; with several processes, only the rows of this one.
        mesh: see `make_mesh`.

    Raises:
        UserError: if the rows don't divide among the devices.
    """
    sharding = NamedSharding(mesh, ROWS)
    if jax.process_count() > 1:
        return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
    shards = row_shards(mesh)
    for array in jax.tree.leaves(batch):
        if array.shape[0] % shards:
            raise UserError(
                f"config.data.tokens_per_batch makes batches of {array.shape[0]} rows, which do not divide among the "
                f"{shards} devices along the axes data and fsdp; make it a multiple of {shards} rows."
            )
    return jax.device_put(batch, sharding)


# Inside functions traced under `on_mesh`. Without a mesh, the functions below change nothing.


def on_mesh(function: Callable[Arguments, Result], mesh: Mesh) -> Callable[Arguments, Result]:
    """A function to be jitted that sees `mesh` while it is traced."""

    @wraps(function)
    def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def axis_size(*axes: str) -> int:
    """Product of the sizes of these axes; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    size = 1
    for axis in axes:
        size *= mesh.shape.get(axis, 1)
    return size


def row_parts(rows: int) -> int:
    """Number of parts into which this number of rows is split; 1 if they do not divide."""
    parts = axis_size(*ROW_AXES)
    return parts if rows % parts == 0 else 1


def platform() -> str:
    """Platform that the traced function will run on: cpu, gpu or tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    if hasattr(device, "platform"):
        return device.platform
    # Before jax 0.9 its kind alone is known, such as "cpu", "TPU v5 lite" or "NVIDIA H100".
    return device.device_kind if device.device_kind == "cpu" else "tpu" if "TPU" in device.device_kind else "gpu"


def constrain(array: Float[Array, "..."], *axes: str | tuple[str, ...] | None) -> Float[Array, "..."]:
    """`array` with each dimension split over the given axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return array if mesh.empty else jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(*axes)))


def gathered(params: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Parameters with the axis `fsdp` gathered for use; their gradients come back split.

    Otherwise XLA may move the activations instead. Each layer gathers its own parameters, again in the backward pass if
    it is rematerialized, so that no device ever holds all of them.

    Args:
        params: parameters of a model or of one layer.
        dtype: type to gather in, narrower to save communication; default: that of the parameters.
    """
    if axis_size("fsdp") == 1:
        return params

    def gather(path: tuple[object, ...], param: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = partition_spec(name)
        if "fsdp" not in spec or _IS_LAYER.search(name):
            return param
        return _gather(param if dtype is None else param.astype(dtype), spec)

    return jax.tree_util.tree_map_with_path(gather, params)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(param: Array, spec: P) -> Array:
    return constrain(param, *(None if axis == "fsdp" else axis for axis in spec))


def _gather_forward(param: Array, spec: P) -> tuple[Array, None]:
    return _gather(param, spec), None


def _scatter_gradient(spec: P, _: None, gradient: Array) -> tuple[Array]:
    # Whole at first: each device adds up the gradients of its own rows, then one reduce-scatter follows.
    return (constrain(_gather(gradient, spec), *spec),)


_gather.defvjp(_gather_forward, _scatter_gradient)


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of `table`. On a mesh, each device adds up the gradients of its own tokens before they are summed."""
    return table[tokens] if axis_size(*ROW_AXES) == 1 else _lookup(table, tokens)


@jax.custom_vjp
def _lookup(table: Array, tokens: Array) -> Array:
    return table[tokens]


def _lookup_forward(table: Array, tokens: Array) -> tuple[Array, tuple[Array, Array]]:
    return table[tokens], (table, tokens)


def _sum_of_rows(looked_up: tuple[Array, Array], gradient: Array) -> tuple[Array, None]:
    table, tokens = looked_up
    parts = row_parts(tokens.shape[0])
    zeros = constrain(jnp.zeros((parts, *table.shape), table.dtype), ROW_AXES, "tensor", None)
    cut = tokens.reshape(parts, -1), gradient.reshape(parts, -1, table.shape[1])
    # XLA would make one scatter of two lookups in one table, and concatenate their rows across devices for it.
    return jax.vmap(lambda total, token, rows: total.at[token].add(rows))(zeros, *cut).sum(0), None


_lookup.defvjp(_lookup_forward, _sum_of_rows)


# Independent work on the devices of one process, without a mesh.

AT_ONCE = {"cpu": 2}
"""Work items in flight per device of a platform, elsewhere 1: small matrix products leave cores of a CPU idle."""


def workers(arrays: PyTree) -> tuple[int, int]:
    """Number of this process's devices that hold these arrays, and of work items in flight on each."""
    devices = _devices(arrays)
    return len(devices), _at_once(devices)


def spread(work: Callable[[PyTree, Item], Result], items: Sequence[Item], arrays: PyTree) -> Iterator[Result]:
    """Yield `work(arrays, item)` for each item, in order, on all devices of this process that hold `arrays`.

    Each device that has work gets a copy of `arrays` if there are several. Work that has begun is finished even if
    another item fails.
    """
    work = standard_numerics()(work)
    devices = _devices(arrays)
    # All devices before any has a second item.
    seats = (devices * _at_once(devices))[: len(items)]
    copies = {device: arrays if len(devices) == 1 else jax.device_put(arrays, device) for device in set(seats)}
    if len(seats) <= 1:
        yield from (work(copies[seats[0]], item) for item in items)
        return
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in seats:
        free.put(device)

    def run(item: Item) -> Result:
        device = free.get()
        try:
            return work(copies[device], item)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(seats), thread_name_prefix="device") as threads:
        yield from threads.map(run, items)


def replicated(arrays: PyTree) -> PyTree:
    """The arrays on every device of this process."""
    return jax.device_put(arrays, NamedSharding(Mesh(jax.local_devices(), "device"), P()))


def _at_once(devices: Sequence[jax.Device]) -> int:
    return AT_ONCE.get(devices[0].platform, 1)


def _devices(arrays: PyTree) -> list[jax.Device]:
    shardings = {leaf.sharding for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)}
    found = {device for sharding in shardings for device in sharding.addressable_devices}
    return sorted(found, key=lambda device: device.id) or jax.local_devices()[:1]
