"""`two_stage_top_k` is `jax.lax.top_k`, whatever the size and however many entries are equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding.constraints import two_stage_top_k


# Cut into blocks of 125 and 128, padded (no divisor), and too short to cut.
@pytest.mark.parametrize("size", [6_000, 8_192, 4_999, 300])
@pytest.mark.parametrize("k", [1, 8])
def test_it_is_that_of_jax(size, k):
    random = np.random.default_rng(0)
    rows = random.normal(size=(3, 2, size)).astype(np.float32)
    rows[1] = random.integers(0, 3, (2, size))  # ties within blocks and between them
    rows[2, 0] = -np.inf
    rows[2, 1, 5:] = -np.inf  # fewer finite entries than k
    actual, expected = jax.jit(two_stage_top_k, static_argnums=1)(rows, k), jax.lax.top_k(jnp.asarray(rows), k)
    np.testing.assert_array_equal(actual[0], expected[0])
    finite = np.isfinite(expected[0])
    np.testing.assert_array_equal(np.where(finite, actual[1], -1), np.where(finite, expected[1], -1))
    assert (np.asarray(actual[1]) < size).all()
