"""The stacks of figure 1, and both in one module over embedded inputs, like PyTorch's `nn.Transformer`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.nn.attention import dropout
from transformer_jax.nn.layers import DecoderLayer, DropoutKey, Embedding, EncoderLayer, LayerNorm, split_key
from transformer_jax.nn.model_config import ModelConfig, check_transformer
from transformer_jax.nn.positions import sinusoidal_positions
from transformer_jax.nn.scanned import Layer, ScannedLayers, apply_layers


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
        self.layers = _layers(EncoderLayer, config, config.num_encoder_layers, rngs)
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
        self.layers = _layers(DecoderLayer, config, config.num_decoder_layers, rngs)
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

        Raises:
            UserError: if a field of `config` is invalid.
        """
        check_transformer(config)
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
    return ((target != 0) | (jnp.arange(target.shape[1]) == 0)).astype(jnp.int32)


def positions_of(tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None) -> Int[Array, "B T"]:
    """`positions`, by default counted from the start of each row."""
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions


def token_embedding(config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> Embedding:
    """An embedding matrix with the options of `config`."""
    return Embedding(
        vocab_size, config.d_model, scale=config.scale_embeddings, dtype=jnp.dtype(config.dtype), rngs=rngs
    )


def _position_table(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    shape = (config.max_positions, config.d_model)
    return nnx.Param(jax.random.normal(rngs.params(), shape) * config.d_model**-0.5)


def _layers(
    kind: Callable[..., Layer], config: ModelConfig, count: int, rngs: nnx.Rngs
) -> Sequence[Layer] | ScannedLayers[Layer]:
    def make(rngs: nnx.Rngs) -> Layer:
        return kind(**_layer_options(config), rngs=rngs)

    if config.scan_layers and count:
        return ScannedLayers(make, count, rngs)
    return nnx.List([make(rngs) for _ in range(count)])


def _layer_options(config: ModelConfig) -> dict[str, Any]:
    names = ("d_model", "num_heads", "d_ff", "dropout_rate", "attention_dropout_rate", "norm_first", "activation")
    return {name: getattr(config, name) for name in names} | {
        "dtype": jnp.dtype(config.dtype),
        "implementation": config.attention_implementation,
    }
