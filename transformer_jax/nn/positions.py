"""Positional encoding (section 3.5)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    wavelengths = 10000.0 ** (jnp.arange(0, d_model, 2) / d_model)
    angles = positions[..., None] / wavelengths
    if layout == "interleaved":
        return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, d_model)
    if layout == "concatenated":
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    raise ValueError(f"layout is {layout!r}, but must be 'interleaved' or 'concatenated'.")
