"""The stacks of figure 1, as lists of layers or scanned, and both in one module, like PyTorch's `nn.Transformer`."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Integer

from transformer_jax.nn.attention import dropout, sinusoidal_positions
from transformer_jax.nn.layers import DecoderLayer, DropoutKey, Embedding, EncoderLayer, LayerNorm, split_key
from transformer_jax.nn.losses import Params
from transformer_jax.nn.model_config import REMATS, ModelConfig
from transformer_jax.sharding import gathered, standard_numerics

Layer = TypeVar("Layer", EncoderLayer, DecoderLayer)

_STACKED = "stacked"


class ScannedLayers(nnx.Module, Generic[Layer]):
    """One or more layers with their parameters stacked along a leading axis; iterates like a list of layers.

    Optimizers compile faster too, as a large model has a few large parameters instead of hundreds of small ones.
    """

    @standard_numerics()
    def __init__(self, make: Callable[[nnx.Rngs], Layer], num_layers: int, rngs: nnx.Rngs) -> None:
        """Initialize the same parameters as `num_layers` successive calls of `make`."""
        stream = rngs.params
        start = stream.count[...]
        graphdef, _ = nnx.split(make(rngs))
        draws = stream.count[...] - start

        def params_of(number: Integer[Array, ""]) -> Params:
            own = nnx.Rngs(stream.key[...])
            own.params.count[...] = start + number * draws
            return split(make(own))[1]

        self.stacked: Layer = nnx.merge(graphdef, jax.vmap(params_of)(jnp.arange(num_layers, dtype=start.dtype)))
        stream.count[...] = start + num_layers * draws
        self.num_layers = num_layers

    def __len__(self) -> int:
        return self.num_layers

    def __iter__(self) -> Iterator[Layer]:
        graphdef, params = split(self.stacked)
        for number in range(self.num_layers):
            yield nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[number], params))  # noqa: B023 called at once

    @standard_numerics()
    def scan(
        self, x: Float[Array, "B T D"], *context: Any, dropout_key: DropoutKey, remat: str
    ) -> Float[Array, "B T D"]:
        """Apply all layers to `x`; arguments as in `apply_layers`."""
        graphdef, params = split(self.stacked)
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
        graphdef, params = split(layer)
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


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """Split a module into its static structure and its parameters.

    Pass the structure to a jitted function as an ordinary argument, a pytree without leaves, not in `static_argnums`:
    hashing it at each call would take milliseconds.
    """
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def _run(
    graphdef: nnx.GraphDef, params: Params, x: Float[Array, "B T D"], *context: Any, **options: Any
) -> Float[Array, "B T D"]:
    return nnx.merge(graphdef, gathered(params, x.dtype))(x, *context, **options)


class Embedder(nnx.Module):
    """Token embeddings plus positional encodings, with dropout on the sum (sections 3.4, 3.5 and 5.4)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.learned = None if config.positions == "sinusoidal" else _position_table(config, rngs)

    def __call__(
        self,
        embedding: Embedding,
        tokens: Int[Array, "*batch"],
        positions: Int[Array, "*batch"],
        dropout_key: DropoutKey = None,
    ) -> Float[Array, "*batch D"]:
        x = embedding(tokens)
        if self.learned is None:
            encoding = sinusoidal_positions(positions, self.config.d_model)
        else:
            encoding = self.learned[...][positions]
        return dropout(x + encoding.astype(x.dtype), self.config.dropout_rate, dropout_key)


class Encoder(nnx.Module):
    """The stack of encoder layers (section 3.1), over embedded tokens.

    It ends with a layer normalization if `config.norm_first` or `config.final_norm`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.data(_layers(EncoderLayer, config, config.num_encoder_layers, rngs))
        self.remat = config.remat
        self.norm = LayerNorm(config.d_model) if config.norm_first or config.final_norm else None

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #S S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B S D"]:
        x = apply_layers(self.layers, x, mask, dropout_key=dropout_key, remat=self.remat, record=record)
        return x if self.norm is None else self.norm(x)


class Decoder(nnx.Module):
    """The stack of decoder layers (section 3.1), over embedded tokens, ending like `Encoder`.

    Causality comes from the caller's `mask`: include `causal_mask` in it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.data(_layers(DecoderLayer, config, config.num_decoder_layers, rngs))
        self.remat = config.remat
        self.norm = LayerNorm(config.d_model) if config.norm_first or config.final_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #T T"] | None = None,
        memory_mask: Bool[Array, "#B 1 #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        context = memory, mask, memory_mask
        x = apply_layers(self.layers, x, *context, dropout_key=dropout_key, remat=self.remat, record=record)
        return x if self.norm is None else self.norm(x)


class Transformer(nnx.Module):
    """Encoder and decoder without embeddings and output layer (section 3.1). Used functionally, like `Seq2Seq`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Initialize the parameters.

        Args:
            config: sizes and options; those of vocabularies, embeddings and positions are ignored.
            rngs: source of the initial parameters.
        """
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(
        self,
        source: Float[Array, "B S D"],
        target: Float[Array, "B T D"],
        source_mask: Bool[Array, "#B 1 #S S"] | None = None,
        target_mask: Bool[Array, "#B 1 #T T"] | None = None,
        memory_mask: Bool[Array, "#B 1 #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """The decoder's output at each target position.

        Args:
            source: source embeddings, including positions.
            target: target embeddings, shifted right, including positions.
            source_mask: True where a source position may attend to another, such as `padding_mask`; by default
                everywhere. PyTorch's boolean masks mean the opposite.
            target_mask: the same among target positions. For a causal decoder, include `causal_mask`.
            memory_mask: True where a target position may attend to a source position; by default everywhere.
            dropout_key: source of dropout; None disables it.
            record: see `transformer_jax.nn.layers`.
        """
        encoder_key, decoder_key = split_key(dropout_key, 2)
        memory = self.encoder(source, source_mask, dropout_key=encoder_key, record=record)
        return self.decoder(target, memory, target_mask, memory_mask, dropout_key=decoder_key, record=record)


def segments_of(tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Segments of rows with one sentence each: 1 for tokens, 0 for padding."""
    return (tokens != 0).astype(jnp.int32)


def shifted_segments_of(target: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """`segments_of` right-shifted targets, whose first token may have padding's id."""
    return ((target != 0) | (jnp.arange(target.shape[1]) == 0)[None]).astype(jnp.int32)


def positions_of(tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None) -> Int[Array, "B T"]:
    """`positions`, by default counted from the start of each row."""
    if positions is not None:
        return positions
    return jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)


def token_embedding(config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> Embedding:
    """An embedding matrix with the options of `config`."""
    return Embedding(
        vocab_size, config.d_model, scale=config.scale_embeddings, dtype=jnp.dtype(config.dtype), rngs=rngs
    )


@standard_numerics()
def _position_table(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    shape = (config.max_positions, config.d_model)
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * config.d_model**-0.5)


def _layers(
    kind: Callable[..., Layer], config: ModelConfig, count: int, rngs: nnx.Rngs
) -> Sequence[Layer] | ScannedLayers[Layer]:
    def make(rngs: nnx.Rngs) -> Layer:
        return kind(**_layer_options(config), rngs=rngs)

    if config.scan_layers and count:
        return ScannedLayers(make, count, rngs)
    return [make(rngs) for _ in range(count)]


def _layer_options(config: ModelConfig) -> dict[str, Any]:
    names = ("d_model", "num_heads", "d_ff", "dropout_rate", "attention_dropout_rate", "norm_first", "activation")
    return {name: getattr(config, name) for name in names} | {
        "dtype": jnp.dtype(config.dtype),
        "implementation": config.attention_implementation,
    }
