"""Layers of one kind as a single one with stacked parameters, run by a loop that compiles once however deep it is."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from transformer_jax.nn.layers import DecoderLayer, DropoutKey, EncoderLayer, split_key
from transformer_jax.sharding import gathered

Layer = TypeVar("Layer", EncoderLayer, DecoderLayer)

REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda run: run,
    "full": jax.checkpoint,
    "dots": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}
"""What the backward pass finds of the inside of a layer: all of it, nothing, the products of tokens and weights."""

_STACKED = "stacked"


class ScannedLayers(nnx.Module, Generic[Layer]):
    """At least one layer, the parameters of all of them stacked along a leading axis; looks like a list of layers.

    A large model has a few large parameters instead of hundreds of small ones, which optimisers compile faster, too.
    """

    def __init__(self, make: Callable[[nnx.Rngs], Layer], num_layers: int, rngs: nnx.Rngs) -> None:
        """Draw the parameters that `num_layers` calls of `make` would draw one after the other."""
        stream = rngs.params
        start = stream.count[...]
        graphdef, _ = nnx.split(make(rngs))
        draws = stream.count[...] - start

        def params_of(number: Array) -> Any:
            own = nnx.Rngs(stream.key[...])
            own.params.count[...] = start + number * draws
            return _split(make(own))[1]

        self.stacked: Layer = nnx.merge(graphdef, jax.vmap(params_of)(jnp.arange(num_layers, dtype=start.dtype)))
        stream.count[...] = start + num_layers * draws
        self.num_layers = num_layers

    def __len__(self) -> int:
        return self.num_layers

    def __iter__(self) -> Iterator[Layer]:
        graphdef, params = _split(self.stacked)
        for number in range(self.num_layers):
            yield nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[number], params))  # noqa: B023 called at once

    def scan(
        self, x: Float[Array, "B T D"], *context: Any, dropout_key: DropoutKey, remat: str
    ) -> Float[Array, "B T D"]:
        """`x` through all layers; arguments as of `apply_layers`."""
        graphdef, params = _split(self.stacked)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.num_layers)

        def body(x: Array, params_and_key: Any) -> tuple[Array, None]:
            params, key = params_and_key
            return _run(graphdef, params, x, *context, dropout_key=key), None

        return jax.lax.scan(REMATS[remat](body), x, (params, keys))[0]


def apply_layers(
    layers: Sequence[Layer] | ScannedLayers[Layer],
    x: Float[Array, "B T D"],
    *context: Any,
    dropout_key: DropoutKey,
    remat: str = "none",
    record: list[Array] | None = None,
) -> Float[Array, "B T D"]:
    """`x` through one layer after the other; how they are held changes no result but by rounding.

    Args:
        layers: a list, or scanned.
        x: what the first layer reads.
        context: what every layer is called with besides: masks, what the encoder wrote.
        dropout_key: source of dropout; None for none.
        remat: a key of `REMATS`.
        record: see `transformer_jax.nn.layers`; a list that is filled must be filled layer by layer, outside any loop.
    """
    if isinstance(layers, ScannedLayers) and record is None:
        return layers.scan(x, *context, dropout_key=dropout_key, remat=remat)
    for layer, key in zip(layers, split_key(dropout_key, len(layers)), strict=True):
        graphdef, params = _split(layer)
        run = partial(_run, graphdef, dropout_key=key, record=record)
        x = (run if record is not None else REMATS[remat](run))(params, x, *context)
    return x


def stack_layers(params: Any) -> Any:
    """Parameters of a model with `scan_layers`, from those of one without (nested dicts, as `models.split` gives)."""
    if not isinstance(params, dict):
        return params
    if params and all(isinstance(name, int) for name in params):
        layers = [params[number] for number in range(len(params))]
        return {_STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    return {name: stack_layers(value) for name, value in params.items()}


def unstack_layers(params: Any) -> Any:
    """The inverse of `stack_layers`: a set of parameters for each layer, as model folders hold them."""
    if not isinstance(params, dict):
        return params
    if set(params) == {_STACKED}:
        stacked = params[_STACKED]
        count = len(jax.tree.leaves(stacked)[0])
        return {number: jax.tree.map(lambda leaf: leaf[number], stacked) for number in range(count)}  # noqa: B023
    return {name: unstack_layers(value) for name, value in params.items()}


def _split(layer: nnx.Module) -> tuple[nnx.GraphDef, Any]:
    graphdef, state = nnx.split(layer)
    return graphdef, nnx.to_pure_dict(state)


def _run(graphdef: nnx.GraphDef, params: Any, x: Array, *context: Any, **options: Any) -> Array:
    return nnx.merge(graphdef, gathered(params, x.dtype))(x, *context, **options)
