import math

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn.attention import sinusoidal_positions


def formula(length, d_model):
    """Section 3.5, one entry at a time."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos / 10000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


@pytest.mark.parametrize("d_model", [2, 6, 64])
def test_equals_the_formula(d_model):
    encoding = sinusoidal_positions(jnp.arange(128), d_model)
    np.testing.assert_allclose(encoding, formula(128, d_model), atol=1e-5)


def test_concatenated_permutes_the_columns():
    interleaved = sinusoidal_positions(jnp.arange(9), 8)
    concatenated = sinusoidal_positions(jnp.arange(9), 8, "concatenated")
    np.testing.assert_array_equal(concatenated, interleaved[:, [0, 2, 4, 6, 1, 3, 5, 7]])


def test_positions_may_restart_and_have_any_shape():
    packed = jnp.array([[0, 1, 2, 0, 1], [3, 0, 0, 1, 2]])
    np.testing.assert_allclose(sinusoidal_positions(packed, 6), formula(4, 6)[packed], atol=1e-6)
    np.testing.assert_allclose(sinusoidal_positions(jnp.array(3), 6), formula(4, 6)[3], atol=1e-6)


def test_an_offset_is_a_rotation_independent_of_the_position():
    # Section 3.5's reason for sinusoids: PE(pos + k) is a linear function of PE(pos).
    encoding = np.asarray(sinusoidal_positions(jnp.arange(40), 4), np.float64)
    step, *_ = np.linalg.lstsq(encoding[:-5], encoding[5:], rcond=None)
    np.testing.assert_allclose(encoding[:-5] @ step, encoding[5:], atol=1e-5)
    np.testing.assert_allclose(step @ step.T, np.eye(4), atol=1e-3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="d_model is 5"):
        sinusoidal_positions(jnp.arange(3), 5)
    with pytest.raises(ValueError, match="layout is 'mixed'"):
        sinusoidal_positions(jnp.arange(3), 4, "mixed")
