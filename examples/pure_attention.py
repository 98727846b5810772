"""Attention as a pure function of arrays: equation (1) and its fast twin under masks, jit, vmap and grad.

Run `python examples/pure_attention.py`.
"""

import jax
import jax.numpy as jnp

from transformer_jax import causal_mask, dot_product_attention, padding_mask, scaled_dot_product_attention

B, T, N, H = 2, 7, 4, 16  # sentences, tokens, heads, width of a head
query, key, value = jax.random.normal(jax.random.key(0), (3, B, T, N, H))
tokens = jnp.array([[5, 6, 7, 8, 9, 2, 0], [5, 6, 2, 0, 0, 0, 0]])  # 0 is padding

# Masks are boolean, True where a query may attend, and combine with `&`.
mask = causal_mask(T) & padding_mask(tokens)  # [B, 1, T, T]

# The literal version also returns the weights; the fast one is for training and search.
literal, weights = scaled_dot_product_attention(query, key, value, mask)  # [B, T, N, H] and [B, N, T, T]
fast = jax.jit(dot_product_attention)(query, key, value, mask)
difference = float(jnp.abs(fast - literal).max())

# Map over a leading axis: three value arrays with one query and key.
values = jnp.stack([value, 2 * value, jnp.zeros_like(value)])
mapped = jax.vmap(dot_product_attention, in_axes=(None, None, 0, None))(query, key, values, mask)  # [3, B, T, N, H]


def at(position):
    """A function of keys and values; its gradient shows what the output at `position` depends on."""
    return lambda key, value: dot_product_attention(query, key, value, mask)[0, position].sum()


reads = jnp.abs(jax.grad(at(3), argnums=1)(key, value)).sum(axis=(2, 3))  # [B, T]

if __name__ == "__main__":
    print(f"the two versions differ by at most {difference:.1e}")
    print("weights of the first head of the second sentence:")
    print(jnp.round(weights[1, 0], 2))
    print("position 3 of the first sentence reads the positions", jnp.flatnonzero(reads[0]))
