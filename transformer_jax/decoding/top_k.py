"""The largest entries of long rows, without sorting them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

BLOCK_WIDTHS = range(64, 257)
"""Of the blocks into which a row is cut: what is wide enough to be scanned fast, and leaves few to look into."""
PADDED_WIDTH = 128
"""Where none of these divides the row."""


def top_k(x: Float[Array, "*batch V"], k: int) -> tuple[Float[Array, "*batch {k}"], Int[Array, "*batch {k}"]]:
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
