import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf, expit

from transformer_jax.nn.layers import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    FeedForward,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    Residual,
)

B, T, S, D, N, F = 2, 3, 5, 8, 2, 12


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def f64(x):
    return np.asarray(x, np.float64)


def test_linear():
    layer = Linear(D, F, rngs=nnx.Rngs(0))
    layer.bias[...] = normal(1, F)
    x = normal(2, B, T, D)
    np.testing.assert_allclose(layer(x), f64(x) @ f64(layer.kernel[...]) + f64(layer.bias[...]), atol=1e-5)
    np.testing.assert_allclose(layer(x[0, 0]), layer(x)[0, 0], atol=1e-6)


def test_layer_norm():
    layer = LayerNorm(D)
    layer.scale[...], layer.bias[...] = normal(1, D), normal(2, D)
    x = 3 * normal(3, B, T, D) + 5
    wide = f64(x)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * f64(layer.scale[...]) + f64(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    # In bfloat16, the mean and variance of large, close numbers would be lost.
    close = jnp.array([256.0, 258.0, 260.0, 262.0] * 2, jnp.bfloat16)
    assert layer(close).dtype == jnp.bfloat16
    np.testing.assert_allclose(layer(close).astype(jnp.float32), layer(close.astype(jnp.float32)), atol=0.02)


@pytest.mark.parametrize(("scale", "factor"), [(True, D**0.5), (False, 1.0)])
def test_embedding_is_a_scaled_row(scale, factor):
    layer = Embedding(7, D, scale=scale, rngs=nnx.Rngs(0))
    tokens = jnp.array([[3, 0], [6, 3]])
    np.testing.assert_allclose(layer(tokens), factor * layer.table[...][tokens], rtol=1e-6)


def test_embedding_starts_with_unit_variance_where_scaled():
    layer = Embedding(1000, 64, rngs=nnx.Rngs(0))
    assert abs(float(layer(jnp.arange(1000)).std()) - 1) < 0.01


@pytest.fixture
def attention():
    layer = MultiHeadAttention(D, N, rngs=nnx.Rngs(0))
    for seed, linear in enumerate((layer.query, layer.key, layer.value, layer.out)):
        linear.bias[...] = normal(seed, D)
    return layer


def heads_one_by_one(layer, x, memory, mask):
    """Section 3.2.2: head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V), each with its own matrices."""
    heads = []
    for i in range(N):
        columns = slice(i * D // N, (i + 1) * D // N)
        query, key, value = (
            f64(y) @ f64(linear.kernel[...])[:, columns] + f64(linear.bias[...])[columns]
            for y, linear in ((x, layer.query), (memory, layer.key), (memory, layer.value))
        )
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(D // N)
        exponentials = np.exp(scores) * mask
        heads.append(exponentials / exponentials.sum(-1, keepdims=True) @ value)
    return np.concatenate(heads, -1) @ f64(layer.out.kernel[...]) + f64(layer.out.bias[...])


def test_multi_head_attention_equals_its_heads_one_by_one(attention):
    x, memory = normal(5, B, T, D), normal(6, B, S, D)
    mask = np.array([[[1, 1, 0, 1, 0]], [[1, 1, 1, 1, 1]]], bool)
    output = attention(x, memory, jnp.asarray(mask[:, None]))
    np.testing.assert_allclose(output, heads_one_by_one(attention, x, memory, mask), atol=1e-5)


def test_recording_keeps_the_output_and_yields_the_weights(attention):
    x = normal(5, B, T, D)
    record = []
    np.testing.assert_allclose(attention(x, x, record=record), attention(x, x), atol=1e-6)
    (weights,) = record
    assert weights.shape == (B, N, T, T)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="8 does not divide into 3 heads"):
        MultiHeadAttention(D, 3, rngs=nnx.Rngs(0))


FORMULAS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "swish": lambda x: x * expit(x),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_feed_forward(activation):
    layer = FeedForward(D, F, activation=activation, rngs=nnx.Rngs(0))
    layer.wide.bias[...], layer.narrow.bias[...] = normal(1, F), normal(2, D)
    x = normal(3, B, T, D)
    hidden = FORMULAS[activation](f64(x) @ f64(layer.wide.kernel[...]) + f64(layer.wide.bias[...]))
    expected = hidden @ f64(layer.narrow.kernel[...]) + f64(layer.narrow.bias[...])
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)


def test_residual_is_post_norm_or_pre_norm():
    x = normal(0, B, T, D)
    post, pre = (Residual(D, dropout_rate=0.0, norm_first=norm_first) for norm_first in (False, True))
    np.testing.assert_allclose(post(x, jnp.sin), post.norm(x + jnp.sin(x)), atol=1e-6)
    np.testing.assert_allclose(pre(x, jnp.sin), x + jnp.sin(pre.norm(x)), atol=1e-6)


def test_residual_drops_the_sublayer_not_the_stream():
    x = normal(0, B, 64, D)
    residual = Residual(D, dropout_rate=0.5, norm_first=True)
    added = residual(x, jnp.ones_like, jax.random.key(1)) - x
    np.testing.assert_allclose(np.unique(np.round(added, 5)), [0, 2], atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_compute_in_bfloat16_from_float32_parameters(norm_first):
    options = {"norm_first": norm_first, "dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    encoder, decoder = EncoderLayer(D, N, F, **options), DecoderLayer(D, N, F, **options)
    for layer in (encoder, decoder):
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("float32")}
    x = normal(0, B, T, D).astype(jnp.bfloat16)
    encoded = encoder(x)
    assert encoded.dtype == decoder(x, encoded).dtype == jnp.bfloat16


def test_dropout_needs_a_key_and_depends_on_nothing_else():
    layer = DecoderLayer(D, N, F, dropout_rate=0.5, attention_dropout_rate=0.5, rngs=nnx.Rngs(0))
    x, memory = normal(0, B, T, D), normal(1, B, S, D)
    call = jax.jit(lambda key: layer(x, memory, dropout_key=key))
    first, again, other = (call(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    still = DecoderLayer(D, N, F, dropout_rate=0.0, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(x, memory), still(x, memory, dropout_key=jax.random.key(0)), atol=1e-6)
