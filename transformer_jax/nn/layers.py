"""The layers of figure 1 as Flax NNX modules.

Modules have no random state: dropout is applied only if the call passes `dropout_key`. Every layer takes `record`, a
list to which its attentions append their weights [B, N, T, S], for plots and alignments.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_jax.nn.attention import (
    attention_by_head,
    dot_product_attention,
    dropout,
    merge_heads,
    scaled_dot_product_attention,
    split_heads,
)
from transformer_jax.sharding import lookup, standard_numerics

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "swish": jax.nn.silu,
}

LAYER_NORM_EPSILON = 1e-5
"""Added to variances; also PyTorch's default."""

DropoutKey = Key[Array, ""] | None


class Linear(nnx.Module):
    """x W + b, computed in `dtype` from float32 parameters; W is Glorot-uniform (Glorot and Bengio, 2010), b is 0."""

    @standard_numerics()
    def __init__(self, d_in: int, d_out: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jax.nn.initializers.glorot_uniform()(rngs.params(), (d_in, d_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_out, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        # One matrix product over all tokens: on [B, T, D] XLA's CPU backend copies transposes in the backward pass.
        kernel = self.kernel[...].astype(self.dtype)
        flat = x.reshape(-1, x.shape[-1]).astype(self.dtype) @ kernel + self.bias[...].astype(self.dtype)[None]
        return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis (Ba et al., 2016), computed in float32."""

    def __init__(self, d_model: int, *, epsilon: float = LAYER_NORM_EPSILON) -> None:
        self.scale = nnx.Param(jnp.ones(d_model, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(d_model, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale, bias = (jnp.broadcast_to(param[...], x.shape) for param in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)


class Embedding(nnx.Module):
    """Token embeddings, multiplied by sqrt(d_model) if `scale` (section 3.4).

    `table`, [V, D], is initialized with a standard deviation of d_model^-0.5, so that it can also be the output layer.
    Ids are from 0 to V - 1 and not checked: as everywhere in JAX, a larger one reads the last row, and negative ones
    count from the end.
    """

    @standard_numerics()
    def __init__(
        self, vocab_size: int, d_model: int, *, scale: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.table = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, d_model), jnp.float32) * d_model**-0.5)
        self.factor = d_model**0.5 if scale else 1.0
        self.dtype = dtype

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        return (lookup(self.table[...], tokens) * self.factor).astype(self.dtype)


class MultiHeadAttention(nnx.Module):
    """MultiHead(Q, K, V) = Concat(head_1, ..., head_h) W^O (section 3.2.2), all heads in one product.

    Args:
        d_model: D, the width of inputs and outputs.
        num_heads: N, a divisor of `d_model`.
        dropout_rate: dropout rate of the attention weights.
        implementation: attention kernel, see `dot_product_attention`.
        dtype: dtype of the computation; parameters are float32.
        rngs: source of the initial parameters.

    Raises:
        ValueError: if `d_model` does not divide into the heads.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        dropout_rate: float = 0.0,
        implementation: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} does not divide into {num_heads} heads.")
        self.query, self.key, self.value, self.out = (
            Linear(d_model, d_model, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.implementation = implementation

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        mask: Bool[Array, "#B #N #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """Attend from `x` to `memory`, which is `x` itself in self-attention.

        Args:
            x: source of queries.
            memory: source of keys and values.
            mask: True where a token of `x` may attend to a token of `memory`.
            dropout_key: source of dropout; None disables it.
            record: list to which the weights [B, N, T, S] are appended.
        """
        return self.attend(self.queries(x), *self.keys_values(memory), mask, dropout_key=dropout_key, record=record)

    def queries(self, x: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        """The projected queries of all heads."""
        return split_heads(self.query(x), self.num_heads)

    def keys_values(self, memory: Float[Array, "B S D"]) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """The projected keys and values of all heads, which decoding caches."""
        return split_heads(self.key(memory), self.num_heads), split_heads(self.value(memory), self.num_heads)

    def attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S N H"],
        value: Float[Array, "B S N H"],
        mask: Bool[Array, "#B #N #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """Attention over projected heads, followed by the output projection."""
        if record is None:
            heads = dot_product_attention(
                query,
                key,
                value,
                mask,
                implementation=self.implementation,
                dropout_rate=self.dropout_rate,
                dropout_key=dropout_key,
            )
        else:
            heads, weights = scaled_dot_product_attention(query, key, value, mask)
            record.append(weights)
        return self.out(merge_heads(heads))

    def attend_by_head(
        self,
        x: Float[Array, "B T D"],
        key: Float[Array, "B N H S"],
        value: Float[Array, "B N S H"],
        mask: Bool[Array, "#B #N #T S"] | None = None,
    ) -> Float[Array, "B T D"]:
        """The layer in decoding, with keys and values cached head by head."""
        return self.out(merge_heads(attention_by_head(self.queries(x).swapaxes(1, 2), key, value, mask).swapaxes(1, 2)))


class FeedForward(nnx.Module):
    """FFN(x) = activation(x W_1 + b_1) W_2 + b_2 (section 3.3, equation 2), with an activation from `ACTIVATIONS`."""

    def __init__(
        self, d_model: int, d_ff: int, *, activation: str = "relu", dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.wide = Linear(d_model, d_ff, dtype=dtype, rngs=rngs)
        self.narrow = Linear(d_ff, d_model, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        return self.narrow(ACTIVATIONS[self.activation](self.wide(x)))


class Residual(nnx.Module):
    """A residual connection with dropout and layer normalization around a sub-layer (sections 3.1 and 5.4)."""

    def __init__(self, d_model: int, *, dropout_rate: float, norm_first: bool) -> None:
        self.norm = LayerNorm(d_model)
        self.dropout_rate = dropout_rate
        self.norm_first = norm_first

    def __call__(
        self,
        x: Float[Array, "*batch D"],
        sublayer: Callable[[Float[Array, "*batch D"]], Float[Array, "*batch D"]],
        dropout_key: DropoutKey = None,
    ) -> Float[Array, "*batch D"]:
        """LayerNorm(x + Sublayer(x)), or x + Sublayer(LayerNorm(x)) if `norm_first`."""
        if self.norm_first:
            return x + dropout(sublayer(self.norm(x)), self.dropout_rate, dropout_key)
        return self.norm(x + dropout(sublayer(x), self.dropout_rate, dropout_key))


@standard_numerics()
def split_key(key: DropoutKey, num: int) -> list[DropoutKey]:
    """`num` keys from one, or `num` times None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


class EncoderLayer(nnx.Module):
    """Self-attention and a feed-forward network, each with a residual connection (figure 1, left).

    Args:
        d_model: D, the width of inputs and outputs.
        num_heads: N, a divisor of `d_model`.
        d_ff: F, the inner width of the feed-forward network.
        dropout_rate: dropout rate of each sub-layer's output (section 5.4).
        attention_dropout_rate: dropout rate of the attention weights.
        norm_first: apply layer normalization before each sub-layer, rather than after the sum as in the paper.
        activation: relu, gelu or swish.
        implementation: attention kernel, see `dot_product_attention`.
        dtype: dtype of the computation; parameters are float32.
        rngs: source of the initial parameters.

    Raises:
        ValueError: if `d_model` does not divide into the heads.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        norm_first: bool = False,
        activation: str = "relu",
        implementation: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.self_attention = MultiHeadAttention(
            d_model,
            num_heads,
            dropout_rate=attention_dropout_rate,
            implementation=implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dtype=dtype, rngs=rngs)
        self.self_attention_residual = Residual(d_model, dropout_rate=dropout_rate, norm_first=norm_first)
        self.feed_forward_residual = Residual(d_model, dropout_rate=dropout_rate, norm_first=norm_first)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B #N #S S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B S D"]:
        attention_key, *keys = split_key(dropout_key, 3)
        x = self.self_attention_residual(
            x, lambda y: self.self_attention(y, y, mask, dropout_key=attention_key, record=record), keys[0]
        )
        return self.feed_forward_residual(x, self.feed_forward, keys[1])


class DecoderLayer(nnx.Module):
    """Self-attention, cross-attention to the encoder's output, feed-forward network (figure 1, right).

    Arguments and errors are those of `EncoderLayer`. Causality comes from the caller's `mask`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        *,
        dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.0,
        norm_first: bool = False,
        activation: str = "relu",
        implementation: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.self_attention, self.cross_attention = (
            MultiHeadAttention(
                d_model,
                num_heads,
                dropout_rate=attention_dropout_rate,
                implementation=implementation,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(2)
        )
        self.feed_forward = FeedForward(d_model, d_ff, activation=activation, dtype=dtype, rngs=rngs)
        self.self_attention_residual, self.cross_attention_residual, self.feed_forward_residual = (
            Residual(d_model, dropout_rate=dropout_rate, norm_first=norm_first) for _ in range(3)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        mask: Bool[Array, "#B #N #T T"] | None = None,
        memory_mask: Bool[Array, "#B #N #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """`record` receives the weights of self-attention first, then those of cross-attention."""
        self_key, cross_key, *keys = split_key(dropout_key, 5)
        x = self.self_attention_residual(
            x, lambda y: self.self_attention(y, y, mask, dropout_key=self_key, record=record), keys[0]
        )
        x = self.cross_attention_residual(
            x, lambda y: self.cross_attention(y, memory, memory_mask, dropout_key=cross_key, record=record), keys[1]
        )
        return self.feed_forward_residual(x, self.feed_forward, keys[2])

    def step(
        self,
        x: Float[Array, "B K D"],
        cached: tuple[Float[Array, "B N H M"], Float[Array, "B N M H"]],
        place: Int[Array, ""],
        mask: Bool[Array, "B 1 K M"],
        memory_keys_values: tuple[Float[Array, "B N H S"], Float[Array, "B N S H"]],
        memory_mask: Bool[Array, "#B 1 1 S"] | None = None,
    ) -> tuple[Float[Array, "B K D"], tuple[Float[Array, "B N H M"], Float[Array, "B N M H"]]]:
        """Decode one more token of each of the K hypotheses of every sentence.

        Queries are scored against the keys of all hypotheses of their sentence, and the mask selects their own: that
        is cheaper than gathering each hypothesis's keys and values.

        Args:
            x: embeddings of the newest tokens.
            cached: keys and values of self-attention at the previous tokens, in M places.
            place: first of the K places for the newest tokens.
            mask: True where a place has a token of the hypothesis, the newest included.
            memory_keys_values: keys and values of cross-attention, shared by the hypotheses of a sentence.
            memory_mask: True where the source has a token.

        Returns:
            The layer's output, and `cached` with the newest tokens in their places.
        """
        keys, values = cached

        def attend_to_past(y: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
            nonlocal keys, values
            new_keys, new_values = self.self_attention.keys_values(y)
            keys = jax.lax.dynamic_update_slice_in_dim(keys, new_keys.transpose(0, 2, 3, 1), place, 3)
            values = jax.lax.dynamic_update_slice_in_dim(values, new_values.swapaxes(1, 2), place, 2)
            return self.self_attention.attend_by_head(y, keys, values, mask)

        x = self.self_attention_residual(x, attend_to_past)
        x = self.cross_attention_residual(
            x, lambda y: self.cross_attention.attend_by_head(y, *memory_keys_values, mask=memory_mask)
        )
        return self.feed_forward_residual(x, self.feed_forward), (keys, values)
