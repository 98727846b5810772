"""How one next token is picked: the likeliest, or one drawn at random."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.decoding.core import Pick
from transformer_jax.decoding.filters import keep_top_k, keep_top_p, scale_temperature
from transformer_jax.decoding.top_k import top_k as largest
from transformer_jax.errors import UserError


def pick_likeliest(allowed: Float[Array, "B K V"], step: Int[Array, ""]) -> Int[Array, "B K"]:
    """The likeliest token of each hypothesis; the lowest id among equals."""
    return largest(allowed, 1)[1][..., 0].astype(jnp.int32)


def sampler(keys: Key[Array, " B"], num_samples: int, temperature: float, top_k: int, top_p: float) -> Pick:
    """Draw from the distribution after temperature, top-k and top-p, in this order.

    The draw depends on the sentence's key, the sample's number and the step, and on nothing else.

    Raises:
        UserError: If `num_samples` is below 1, `temperature` not above 0, `top_k` negative or `top_p` not in (0, 1].
    """
    if num_samples < 1:
        raise UserError(f"num_samples is {num_samples}, but must be at least 1.")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}, but must be above 0; for the likeliest tokens search greedily.")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}, but must be at least 1, or 0 to draw from all tokens.")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p}, but must be above 0 and at most 1.")
    sample_numbers = jnp.arange(num_samples)
    sample_keys = jax.vmap(lambda key: jax.vmap(lambda k: jax.random.fold_in(key, k))(sample_numbers))(keys)

    def pick(allowed: Float[Array, "B K V"], step: Int[Array, ""]) -> Int[Array, "B K"]:
        logits = keep_top_p(keep_top_k(scale_temperature(allowed, temperature), top_k), top_p)

        def draw(key: Key[Array, ""], logits: Float[Array, " V"]) -> Int[Array, ""]:
            return jax.random.categorical(jax.random.fold_in(key, step), logits).astype(jnp.int32)

        return jax.vmap(jax.vmap(draw))(sample_keys, logits)

    return pick
