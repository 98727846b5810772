"""Where arrays live: the mesh of devices, the shardings of a state by the table of rules, and the rows of a batch."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from transformer_jax.config import MeshConfig
from transformer_jax.errors import UserError
from transformer_jax.models import ModelConfig
from transformer_jax.partition import AXES, ROWS, partition_spec


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices along the three axes.

    Args:
        config: the size of each axis; at most one may be -1, for what is left.
        devices: the devices to use, by default all.

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
    # The default of make_mesh is Explicit, which would ask for a layout at every lookup in an embedding.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def state_shardings(tree: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """A sharding for each array of a tree of parameters, or of one that holds such trees, as optimiser states do.

    Args:
        tree: arrays, or `jax.ShapeDtypeStruct`s.
        mesh: see `make_mesh`.

    Raises:
        UserError: if a dimension does not divide by the axis that splits it.
    """

    def sharding(path: tuple[object, ...], leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        spec = partition_spec(name)
        # Some optimisers keep vectors or single numbers under the path of a matrix; those are small.
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


def check_heads(model: ModelConfig, mesh: Mesh) -> None:
    """Raise `UserError` if the heads of attention do not divide by the axis that splits them."""
    parts = mesh.shape["tensor"]
    if model.num_heads % parts:
        raise UserError(
            f"config.model.num_heads is {model.num_heads}, which does not divide into config.mesh.tensor={parts} "
            "parts; change one of them."
        )


def row_shards(mesh: Mesh) -> int:
    """Parts into which the rows of a batch are spread."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def place(batch: PyTree, mesh: Mesh) -> PyTree:
    """Put a batch on the devices, its rows spread over `data` and `fsdp`.

    Args:
        batch: numpy arrays with one leading row axis. With several processes, the rows of this one.
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


def own_rows(mesh: Mesh, num_rows: int) -> list[int]:
    """Those of a batch's rows that lie on devices of this process, in the order in which `place` takes them."""
    parts = NamedSharding(mesh, ROWS).addressable_devices_indices_map((num_rows,)).values()
    return sorted({row for part in parts if part is not None for row in range(*part[0].indices(num_rows))})
