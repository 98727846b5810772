"""Stacks of layers run by `jax.lax.scan` over stacked parameters, so that compile time does not grow with depth."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer

from transformer_jax.nn.layers import DecoderLayer, DropoutKey, EncoderLayer, split_key
from transformer_jax.nn.losses import Params
from transformer_jax.sharding import gathered

Layer = TypeVar("Layer", EncoderLayer, DecoderLayer)

REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda run: run,
    "full": jax.checkpoint,
    "dots": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}
"""Checkpoint policies of a layer: none keeps all activations, full keeps none, dots keeps products with weights."""

_STACKED = "stacked"


class ScannedLayers(nnx.Module, Generic[Layer]):
    """One or more layers with their parameters stacked along a leading axis; iterates like a list of layers.

    Optimizers compile faster too, as a large model has a few large parameters instead of hundreds of small ones.
    """

    def __init__(self, make: Callable[[nnx.Rngs], Layer], num_layers: int, rngs: nnx.Rngs) -> None:
        """Initialize the same parameters as `num_layers` successive calls of `make`."""
        stream = rngs.params
        start = stream.count[...]
        graphdef, _ = nnx.split(make(rngs))
        draws = stream.count[...] - start

        def params_of(number: Integer[Array, ""]) -> Params:
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
        """Apply all layers to `x`; arguments as in `apply_layers`."""
        graphdef, params = _split(self.stacked)
        keys = None if dropout_key is None else jax.random.split(dropout_key, self.num_layers)

        def body(
            x: Float[Array, "B T D"], params_and_key: tuple[Params, DropoutKey]
        ) -> tuple[Float[Array, "B T D"], None]:
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
    """Apply one layer after another; a list and scanned layers give equal results up to rounding.

    Args:
        layers: a list of layers, or scanned layers.
        x: input of the first layer.
        context: further arguments of every layer: masks, the encoder's output.
        dropout_key: source of dropout; None disables it.
        remat: a key of `REMATS`.
        record: see `transformer_jax.nn.layers`; if given, layers are applied one by one, as a loop cannot fill a list.
    """
    if isinstance(layers, ScannedLayers) and record is None:
        return layers.scan(x, *context, dropout_key=dropout_key, remat=remat)
    for layer, key in zip(layers, split_key(dropout_key, len(layers)), strict=True):
        graphdef, params = _split(layer)
        run = partial(_run, graphdef, dropout_key=key, record=record)
        x = (run if record is not None else REMATS[remat](run))(params, x, *context)
    return x


def stack_layers(params: Params) -> Params:
    """Convert the parameters of a model without `scan_layers`, as `nn.split` returns them, to those of one with it."""
    if not isinstance(params, dict):
        return params
    if params and all(isinstance(name, int) for name in params):
        layers = [params[number] for number in range(len(params))]
        return {_STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
    return {name: stack_layers(value) for name, value in params.items()}


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`: separate parameters for each layer, as in model folders."""
    if not isinstance(params, dict):
        return params
    if set(params) == {_STACKED}:
        stacked = params[_STACKED]
        count = len(jax.tree.leaves(stacked)[0])
        return {number: jax.tree.map(lambda leaf: leaf[number], stacked) for number in range(count)}  # noqa: B023
    return {name: unstack_layers(value) for name, value in params.items()}


def _split(layer: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    graphdef, state = nnx.split(layer)
    return graphdef, nnx.to_pure_dict(state)


def _run(
    graphdef: nnx.GraphDef, params: Params, x: Float[Array, "B T D"], *context: Any, **options: Any
) -> Float[Array, "B T D"]:
    return nnx.merge(graphdef, gathered(params, x.dtype))(x, *context, **options)
