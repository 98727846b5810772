import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn.losses import chunked_cross_entropy, smoothed_cross_entropy

B, T, V, D = 2, 3, 7, 4
LOGITS = 3 * jax.random.normal(jax.random.key(0), (B, T, V))
LABELS = jax.random.randint(jax.random.key(1), (B, T), 0, V)


def by_definition(logits, labels, smoothing):
    """Cross-entropy against the explicit distribution (1 - smoothing) one-hot + smoothing / V."""
    distribution = (1 - smoothing) * jax.nn.one_hot(labels, logits.shape[-1]) + smoothing / logits.shape[-1]
    return -jnp.sum(distribution * jax.nn.log_softmax(logits), axis=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_equals_the_one_hot_definition_in_value_and_gradient(smoothing):
    np.testing.assert_allclose(
        smoothed_cross_entropy(LOGITS, LABELS, smoothing), by_definition(LOGITS, LABELS, smoothing), rtol=1e-5
    )
    weights = jax.random.normal(jax.random.key(2), (B, T))
    actual, expected = (
        jax.grad(lambda logits, loss=loss: jnp.sum(weights * loss(logits, LABELS, smoothing)))(LOGITS)
        for loss in (smoothed_cross_entropy, by_definition)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_uniform_logits_cost_log_v_whatever_the_smoothing():
    for smoothing in (0.0, 0.1):
        losses = smoothed_cross_entropy(jnp.full((4, V), 2.5), jnp.arange(4), smoothing)
        np.testing.assert_allclose(losses, np.log(V), rtol=1e-6)


def test_is_computed_in_float32_and_survives_large_logits():
    assert smoothed_cross_entropy(LOGITS.astype(jnp.bfloat16), LABELS, 0.1).dtype == jnp.float32
    logits = jnp.array([[1e4, 0.0, -1e4]])
    np.testing.assert_allclose(smoothed_cross_entropy(logits, jnp.array([0])), 0)
    np.testing.assert_allclose(smoothed_cross_entropy(logits, jnp.array([2])), 2e4)


@pytest.mark.parametrize("chunk", [1, 256])
def test_chunks_with_a_bias_equal_the_whole(chunk):
    x, table, labels, weights = decoder_output()
    bias = jax.random.normal(jax.random.key(8), (V,))

    def whole(x, table, bias):
        return 0.3 * jnp.sum(weights * smoothed_cross_entropy(x @ table.T + bias, labels, 0.1))

    def chunked(x, table, bias):
        return 0.3 * chunked_cross_entropy(x, table, labels, weights, 0.1, chunk, bias)

    expected, actual = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, table, bias) for loss in (whole, chunked)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)


def decoder_output():
    keys = jax.random.split(jax.random.key(3), 4)
    x, table = jax.random.normal(keys[0], (B, 6, D)), jax.random.normal(keys[1], (V, D))
    labels = jax.random.randint(keys[2], (B, 6), 0, V)
    weights = jax.random.uniform(keys[3], (B, 6)) * (jnp.arange(6) < jnp.array([[6], [4]]))
    return x, table, labels, weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
# One, three and six columns of two rows.
@pytest.mark.parametrize("chunk", [1, 5, 256])
def test_chunks_equal_the_whole_in_value_and_gradient(chunk, smoothing):
    x, table, labels, weights = decoder_output()

    def whole(x, table):
        return 1.7 * jnp.sum(weights * smoothed_cross_entropy(x @ table.T, labels, smoothing))

    def chunked(x, table):
        return 1.7 * chunked_cross_entropy(x, table, labels, weights, smoothing, chunk)

    expected, actual = (jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, table) for loss in (whole, chunked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected)
    assert not np.asarray(actual[1][0])[np.asarray(weights == 0)].any()


def test_chunks_in_bfloat16_come_close_and_keep_the_dtypes():
    x, table, labels, weights = decoder_output()
    loss = jax.value_and_grad(chunked_cross_entropy, argnums=(0, 1))
    expected, (_, expected_table) = loss(x, table, labels, weights, 0.1, 4)
    value, (d_x, d_table) = loss(x.astype(jnp.bfloat16), table, labels, weights, 0.1, 4)
    assert (value.dtype, d_x.dtype, d_table.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, expected, rtol=0.02)
    np.testing.assert_allclose(d_table, expected_table, atol=0.05)


def test_the_gradient_of_a_float32_table_is_summed_in_float32():
    x, table, labels, weights = decoder_output()
    gradient = jax.grad(chunked_cross_entropy, argnums=1)(x.astype(jnp.bfloat16), table, labels, weights)
    rounded = gradient.astype(jnp.bfloat16).astype(jnp.float32)
    assert jnp.mean(gradient == rounded) < 0.5


def test_bfloat16_error_is_that_of_its_roundings():
    """Late in training the gradient is p - 1 at the label, where rounding the logits themselves would show.

    Rounding to bfloat16 has a relative error of at most 2^-9. The gradient of the logits is rounded once, before two
    products that accumulate in float32; the gradient of the table stays float32, that of x is rounded once more.
    """
    rows, length, vocabulary, width = 8, 32, 200, 64
    keys = jax.random.split(jax.random.key(5), 3)
    table = (width**-0.5 * jax.random.normal(keys[0], (vocabulary, width))).astype(jnp.bfloat16)
    labels = jax.random.randint(keys[1], (rows, length), 0, vocabulary)
    x = (8 * table[labels] + jax.random.normal(keys[2], (rows, length, width))).astype(jnp.bfloat16)
    weights = jnp.ones((rows, length))

    def loss_and_gradients(loss, *arguments):
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)

    def plain(x, table):
        return smoothed_cross_entropy(jnp.dot(x, table.T, precision="highest"), labels, 0.1).sum()

    def chunked(x, table):
        return chunked_cross_entropy(x, table, labels, weights, 0.1, 64)

    def relative_error(actual, expected):
        difference = actual.astype(jnp.float32) - expected
        return float(jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(expected.ravel()))

    wide = x.astype(jnp.float32), table.astype(jnp.float32)
    confidence = float(jnp.exp(-smoothed_cross_entropy(wide[0] @ wide[1].T, labels)).mean())
    assert 0.7 < confidence < 0.8
    value, expected = loss_and_gradients(plain, *wide)
    # The parameters are float32 in training.
    ours, gradients = loss_and_gradients(chunked, x, wide[1])
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    assert relative_error(gradients[0], expected[0]) < 2 * 2**-9
    assert relative_error(gradients[1], expected[1]) < 2**-9
    # The bounds are tight enough: bfloat16 logits exceed both.
    _, rounded = loss_and_gradients(plain, x, table)
    assert relative_error(rounded[0], expected[0]) > 2 * 2**-9
    assert relative_error(rounded[1], expected[1]) > 2**-9
