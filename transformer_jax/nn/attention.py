"""Attention (section 3.2), its masks, and positional encoding (section 3.5), as pure functions of arrays.

Shapes follow `jax.nn`: B batch, T query length, S key length, N heads, H head width, D = N * H.
Masks are boolean, and True where a query may attend to a key.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

MASKED = -1e30
"""Replaces minus infinity in equation (1): finite, so that a query without any keys does not yield NaN."""


def scaled_dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    mask: Bool[Array, "#B #N #T S"] | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T S"]]:
    """Equation (1) to the letter: softmax(Q K^T / sqrt(d_k)) V.

    Returns:
        The output, and the attention weights, which are float32 and sum to 1 over S. A query without any keys weights
        all of them equally.
    """
    d_k = query.shape[-1]
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32) / jnp.sqrt(d_k)
    if mask is not None:
        scores = jnp.where(_checked(mask), scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value), weights


def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    mask: Bool[Array, "#B #N #T S"] | None = None,
    *,
    implementation: str | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """The fast twin of `scaled_dot_product_attention`: the same output, without the weights.

    Args:
        query: the queries Q.
        key: the keys K.
        value: the values V.
        mask: True where a query may attend to a key.
        implementation: None or "xla" for XLA's kernels on any device, "cudnn" for the fused kernel on NVIDIA GPUs.
        dropout_rate: dropout rate of the attention weights.
        dropout_key: source of dropout; None disables it.

    Raises:
        ValueError: if `implementation` is unknown, or does not support these arguments.
    """
    mask = None if mask is None else _checked(mask)
    _check_rate("dropout_rate", dropout_rate)
    drops = dropout_key is not None and dropout_rate > 0.0
    if implementation == "cudnn":
        if drops:
            raise ValueError("implementation='cudnn' has no attention dropout; set attention_dropout_rate to 0.")
        return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    if implementation not in (None, "xla"):
        raise ValueError(f"implementation is {implementation!r}, but must be None, 'xla' or 'cudnn'.")
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("BTNH,BSNH->BNTS", query * scale, key, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if drops:
        weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, value)


def attention_by_head(
    query: Float[Array, "B N T H"],
    key: Float[Array, "B N H S"],
    value: Float[Array, "B N S H"],
    mask: Bool[Array, "#B #N #T S"] | None = None,
) -> Float[Array, "B N T H"]:
    """`dot_product_attention` of few queries over cached keys and values, as in decoding.

    With the head axis outside, each product reads contiguous memory. With it inside, as projected, XLA would transpose
    the entire cache at every step.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("BNTH,BNHS->BNTS", query * scale, key, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(_checked(mask), scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("BNTS,BNSH->BNTH", weights, value)


def _checked(mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """The mask, which must be boolean: of another type, added to scores elsewhere, it would mean the opposite.

    Raises:
        TypeError: if it is not.
    """
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(f"mask is {jnp.result_type(mask)}, but must be bool: True where a query may attend to a key.")
    return mask


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate <= 0.99:
        raise ValueError(f"{name} is {rate}, but must be from 0 to 0.99.")


def split_heads(x: Float[Array, "*batch D"], num_heads: int) -> Float[Array, "*batch {num_heads} H"]:
    """Section 3.2.2: split the width D into `num_heads` heads of width H = D / num_heads, which must be an integer."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: Float[Array, "*batch N H"]) -> Float[Array, "*batch D"]:
    """Concat(head_1, ..., head_h) of section 3.2.2."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def padding_mask(tokens: Int[Array, "B S"], pad_id: int = 0) -> Bool[Array, "B 1 1 S"]:
    """True for every key that is a token, so that no query attends to padding."""
    return (tokens != pad_id)[:, None, None, :]


def causal_mask(length: int) -> Bool[Array, "1 1 {length} {length}"]:
    """Position i attends to positions up to i (section 3.2.3)."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


def segment_mask(query_segments: Int[Array, "B T"], key_segments: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """Sentences packed into one row attend only to themselves; segment 0 is padding, to which no query attends."""
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return (same & (key_segments != 0)[:, None, :])[:, None]


def dropout(x: Float[Array, "..."], rate: float, key: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Zero a fraction `rate` of `x` and scale up the rest to keep the expectation (section 5.4).

    Each element takes 8 random bits, a quarter of the cost of 32, so `rate` is rounded to a multiple of 1/256. Without
    a `key`, `x` is returned unchanged.

    Raises:
        ValueError: if `rate` is not from 0 to 0.99.
    """
    _check_rate("dropout rate", rate)
    threshold = round(rate * 256)
    if key is None or threshold == 0:
        return x
    with jax.threefry_partitionable(True):  # the default; other settings draw other bits
        if x.shape[-1] % 4 == 0:
            words = jax.random.bits(key, (*x.shape[:-1], x.shape[-1] // 4), jnp.uint32)
            bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape)
        else:
            bits = jax.random.bits(key, x.shape, jnp.uint8)
    return jnp.where(bits >= threshold, x * (256 / (256 - threshold)), 0).astype(x.dtype)


def sinusoidal_positions(
    positions: Int[Array, "*batch"], d_model: int, layout: str = "interleaved"
) -> Float[Array, "*batch {d_model}"]:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos of the same angle.

    Args:
        positions: positions of tokens in their sentences, from 0.
        d_model: width of the encoding; even.
        layout: "interleaved", alternating sines and cosines as in the paper, or "concatenated", all sines before all
            cosines as in tensor2tensor and Marian. They differ by a permutation of columns.

    Raises:
        ValueError: if `d_model` is odd or `layout` is unknown.
    """
    if d_model % 2:
        raise ValueError(f"d_model is {d_model}, but sinusoids need an even width.")
    wavelengths = 10000.0 ** (jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)
    angles = positions[..., None].astype(jnp.float32)
    angles = angles / jnp.broadcast_to(wavelengths, (*positions.shape, d_model // 2))
    if layout == "interleaved":
        return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, d_model)
    if layout == "concatenated":
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    raise ValueError(f"layout is {layout!r}, but must be 'interleaved' or 'concatenated'.")
