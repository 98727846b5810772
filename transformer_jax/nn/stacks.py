"""Both stacks of figure 1 over vectors that are embedded already: the counterpart of PyTorch's `nn.Transformer`."""

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
    """Token embeddings plus positions, with dropout on the sum (sections 3.4, 3.5 and 5.4)."""

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

    A layer normalisation ends it if `config.norm_first` or `config.final_norm`.
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
    """The stack of decoder layers (section 3.1), over embedded tokens, ended as `Encoder` is.

    It does not mask by itself: pass `mask` with `causal_mask` in it.
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


def segments_of(tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """One sentence a row: 1 where there is a token, 0 where there is padding."""
    return (tokens != 0).astype(jnp.int32)


def shifted_segments_of(target: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The same of a target that is shifted right: what stands first starts it, though that may be padding's id."""
    return ((target != 0) | (jnp.arange(target.shape[1]) == 0)).astype(jnp.int32)


def positions_of(tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None) -> Int[Array, "B T"]:
    """`positions` or, without, those counted from the start of each row."""
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


class Transformer(nnx.Module):
    """Encoder and decoder, without embeddings and output layer (section 3.1). Used functionally, as `Seq2Seq` is."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Draw the parameters.

        Args:
            config: sizes and options; those of vocabularies, embeddings and positions mean nothing here.
            rngs: source of the parameters.

        Raises:
            UserError: if two fields of `config` contradict each other.
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
            source: embedded source, positions added.
            target: embedded target, shifted right, positions added.
            source_mask: True where a source position may look at another; None: everywhere. PyTorch's boolean masks
                mean the opposite. See `attention.padding_mask`.
            target_mask: the same among target positions. Nothing is causal unless asked for: `attention.causal_mask`.
            memory_mask: True where a target position may look at a source position; None: everywhere.
            dropout_key: source of dropout; None for none.
            record: see `transformer_jax.nn.layers`.
        """
        encoder_key, decoder_key = split_key(dropout_key, 2)
        memory = self.encoder(source, source_mask, dropout_key=encoder_key, record=record)
        return self.decoder(target, memory, target_mask, memory_mask, dropout_key=decoder_key, record=record)
