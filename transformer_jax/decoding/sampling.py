"""How one next token is picked: the likeliest, or one drawn after temperature, top-k and top-p."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.system.errors import UserError

Pick = Callable[[Float[Array, "B K V"], Int[Array, ""]], Int[Array, "B K"]]
"""`(allowed, step) -> tokens`: one next token of each hypothesis."""

BLOCK_WIDTHS = range(64, 257)
"""Of the blocks into which a row is cut: what is wide enough to be scanned fast, and leaves few to look into."""
PADDED_WIDTH = 128
"""Where none of these divides the row."""


def two_stage_top_k(x: Float[Array, "*batch V"], k: int) -> tuple[Float[Array, "*batch {k}"], Int[Array, "*batch {k}"]]:
    """`jax.lax.top_k` to the letter, ties included, in two stages: the k best blocks of each row, and the best in them.

    No entry outside the k blocks with the largest maxima can be among the k largest, so all but them is read once, to
    find each block's maximum, which vectorises where sorting does not.
    """
    size = x.shape[-1]
    width = min((w for w in BLOCK_WIDTHS if size % w == 0), key=lambda w: abs(w - PADDED_WIDTH), default=PADDED_WIDTH)
    if size < 4 * k * width:
        values, index = jax.lax.top_k(x, k)
        return values, index
    missing = -size % width
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=-jnp.inf)
    blocks = x.reshape(*x.shape[:-1], -1, width)
    # In the order of the row, so that among equals the first still wins.
    chosen = jnp.sort(jax.lax.top_k(blocks.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2).reshape(*x.shape[:-1], -1)
    values, index = jax.lax.top_k(candidates, k)
    return values, jnp.take_along_axis(chosen, index // width, axis=-1) * width + index % width


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


def pick_likeliest(allowed: Float[Array, "B K V"], step: Int[Array, ""]) -> Int[Array, "B K"]:
    """The likeliest token of each hypothesis; the lowest id among equals."""
    return two_stage_top_k(allowed, 1)[1][..., 0].astype(jnp.int32)


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
