"""Filters of the next token's distribution for sampling: temperature, top-k, top-p. Pure functions of logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def scale_temperature(logits: Float[Array, "*rows V"], temperature: float) -> Float[Array, "*rows V"]:
    """Flatten (`temperature` above 1) or sharpen (below 1) the distribution; `temperature` must be above 0."""
    return logits / temperature


def keep_top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Forbid (-inf) all but the `k` likeliest tokens, and those tied with the last of them; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
    """Forbid (-inf) all but the smallest set of likeliest tokens that holds probability `p` (nucleus sampling).

    The likeliest token and those tied with the last of the set always stay; `p` of 1 or more keeps all.
    """
    if p >= 1.0:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first always stays: rounding must not let its own 'probability before' reach a tiny p.
    inside = (before < p).at[..., 0].set(True)
    threshold = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)
