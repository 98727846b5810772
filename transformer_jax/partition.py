"""Which axes of a mesh of devices split what: one table for parameters, the rows of a batch, and how both meet.

Three axes: `data` splits the batch; `fsdp` splits the batch and the parameters, which are gathered when used; `tensor`
splits heads, the feed-forward width and the vocabulary. XLA derives all other layouts and the communication from these.
What is traced by way of `on_mesh` knows its mesh; elsewhere the functions that ask for it change nothing.
"""

import re
from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
ROWS = P(ROW_AXES)
"""Of a batch."""

RULES: tuple[tuple[str, P], ...] = (
    # The first matrix of a pair is split by columns and the second by rows, so that one sum ends each sub-layer.
    (r"(query|key|value|wide)\.kernel", P("fsdp", "tensor")),
    (r"(query|key|value|wide)\.bias", P("tensor")),
    (r"(out|narrow)\.kernel", P("tensor", "fsdp")),
    (r"table", P("tensor", "fsdp")),
    (r"output_bias", P("tensor")),
    (r"learned", P(None, "fsdp")),
)
"""End of a parameter's path, as a regular expression, and the axes that its dimensions are split over.

What matches none is small, and every device holds it whole.
"""
_IS_STACKED = re.compile(r"(^|\.)layers\.stacked\.")
"""Parameters of scanned layers have one more axis in front, which is not split."""
_IS_LAYER = re.compile(r"(^|\.)layers\.")


def partition_spec(path: str) -> P:
    """The rule for a path such as `encoder.layers.0.self_attention.query.kernel`, or P() if there is none.

    With `stacked` in place of the number, it leaves the axis of the layers whole.

    Raises:
        ValueError: if two rules match.
    """
    matching = [(pattern, spec) for pattern, spec in RULES if re.search(rf"(^|\.)({pattern})$", path)]
    if len(matching) > 1:
        raise ValueError(f"{path} matches the sharding rules {' and '.join(pattern for pattern, _ in matching)}.")
    if not matching:
        return P()
    return P(None, *matching[0][1]) if _IS_STACKED.search(path) else matching[0][1]


def on_mesh(function: Callable[Arguments, Result], mesh: Mesh) -> Callable[Arguments, Result]:
    """`function`, to be jitted, which knows `mesh` while it is traced."""

    @wraps(function)
    def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced


def axis_size(*axes: str) -> int:
    """Parts into which these axes of the mesh split something; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    size = 1
    for axis in axes:
        size *= mesh.shape.get(axis, 1)
    return size


def row_parts(rows: int) -> int:
    """Parts into which so many rows of a batch are spread over the mesh; 1 if they do not divide."""
    parts = axis_size(*ROW_AXES)
    return parts if rows % parts == 0 else 1


def platform() -> str:
    """Of the devices that what is being traced will run on: cpu, gpu, tpu."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(array: Float[Array, "..."], *axes: str | tuple[str, ...] | None) -> Float[Array, "..."]:
    """`array` with each of its dimensions split over these axes of the mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, P(*axes))


def gathered(params: PyTree, dtype: DTypeLike | None = None) -> PyTree:
    """Parameters as they are used: whole where `fsdp` splits them; their gradients come back split.

    Without that, XLA may rather move the activations. Those of layers are left to the layer, which gathers them once
    more in the backward pass if it is rematerialised, so that no device ever holds all.

    Args:
        params: of a model, or of one layer.
        dtype: of what is gathered, which saves communication if it is narrower; None: as it is.
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
    # Whole at first: each device adds up what its own rows give, and one sum over devices follows, of which each keeps
    # its part.
    return (constrain(_gather(gradient, spec), *spec),)


_gather.defvjp(_gather_forward, _scatter_gradient)


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    """Rows of `table`; over a mesh, each device adds up the gradients of its own rows of tokens before they all do."""
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
