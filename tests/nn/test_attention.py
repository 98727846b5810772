import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.nn.attention import (
    attention_by_head,
    causal_mask,
    dot_product_attention,
    dropout,
    merge_heads,
    padding_mask,
    scaled_dot_product_attention,
    segment_mask,
    split_heads,
)

B, T, S, N, H = 2, 3, 5, 2, 4


def random_qkv(dtype=jnp.float32, *, query_length=T, key_length=S):
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = (query_length, key_length, key_length)
    return tuple(
        jax.random.normal(key, (B, length, N, H)).astype(dtype) for key, length in zip(keys, lengths, strict=True)
    )


def attention_by_loops(query, key, value, mask):
    """Equation (1), one query of one head at a time, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output, weights = np.zeros(query.shape), np.zeros((B, N, query.shape[1], key.shape[1]))
    for b, n, t in np.ndindex(B, N, query.shape[1]):
        scores = np.array([query[b, t, n] @ key[b, s, n] for s in range(key.shape[1])]) / np.sqrt(H)
        exponentials = np.exp(scores) * mask[b, n, t]
        weights[b, n, t] = exponentials / exponentials.sum()
        output[b, t, n] = weights[b, n, t] @ value[b, :, n]
    return output, weights


def random_mask(shape):
    mask = np.random.default_rng(0).random(shape) < 0.5
    mask[..., 0] = True
    return mask


MASKS = {
    "none": None,
    "padding": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)[:, None, None],
    "one for all": random_mask((1, 1, T, S)),
    "per head": random_mask((1, N, T, S)),
    "full": random_mask((B, N, T, S)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_equation_1(mask):
    query, key, value = random_qkv()
    expected = attention_by_loops(
        query, key, value, np.broadcast_to(True if mask is None else mask, (B, N, T, S)).astype(float)
    )
    mask = None if mask is None else jnp.asarray(mask)
    output, weights = scaled_dot_product_attention(query, key, value, mask)
    np.testing.assert_allclose(output, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1], atol=1e-6)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_fast_path_equals_equation_1_in_value_and_gradient(mask, implementation):
    qkv = random_qkv()
    mask = None if mask is None else jnp.asarray(mask)
    direction = jax.random.normal(jax.random.key(1), (B, T, N, H))

    def literal(query, key, value):
        return jnp.vdot(scaled_dot_product_attention(query, key, value, mask)[0], direction)

    def fast(query, key, value):
        return jnp.vdot(dot_product_attention(query, key, value, mask, implementation=implementation), direction)

    expected = jax.jit(jax.value_and_grad(literal, argnums=(0, 1, 2)))(*qkv)
    actual = jax.jit(jax.value_and_grad(fast, argnums=(0, 1, 2)))(*qkv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), actual, expected)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_by_head_equals_equation_1(mask):
    query, key, value = random_qkv()
    mask = None if mask is None else jnp.asarray(mask)
    expected, _ = scaled_dot_product_attention(query, key, value, mask)
    by_head = attention_by_head(query.swapaxes(1, 2), key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), mask)
    np.testing.assert_allclose(by_head.swapaxes(1, 2), expected, atol=1e-6)


def test_the_fused_kernel_gets_every_argument_and_a_dropout_rate_without_a_key_is_none(monkeypatch):
    query, key, value = random_qkv()
    mask, kernel = jnp.asarray(MASKS["full"]), jax.nn.dot_product_attention

    def on_any_device(*arguments, implementation, **options):
        assert implementation == "cudnn"
        return kernel(*arguments, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_any_device)
    output = dot_product_attention(query, key, value, mask, implementation="cudnn", dropout_rate=0.1)
    np.testing.assert_allclose(output, scaled_dot_product_attention(query, key, value, mask)[0], atol=1e-6)


def test_bfloat16_keeps_a_float32_softmax():
    query, key, value = random_qkv(jnp.bfloat16)
    output, weights = scaled_dot_product_attention(query, key, value)
    assert (output.dtype, weights.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    fast = dot_product_attention(query, key, value)
    assert fast.dtype == jnp.bfloat16
    # One unit in the last place of bfloat16 at 1 is 2^-8.
    np.testing.assert_allclose(fast.astype(jnp.float32), output.astype(jnp.float32), atol=2**-6)


def test_a_query_without_keys_gives_the_mean_and_finite_gradients():
    query, key, value = random_qkv()
    nothing = jnp.zeros((1, 1, 1, S), bool)
    output, weights = scaled_dot_product_attention(query, key, value, nothing)
    np.testing.assert_allclose(weights, 1 / S, rtol=1e-6)
    np.testing.assert_allclose(output, np.broadcast_to(value.mean(1, keepdims=True), output.shape), atol=1e-6)
    gradient = jax.grad(lambda key: dot_product_attention(query, key, value, nothing).sum())(key)
    assert np.isfinite(gradient).all()


def test_masked_values_have_no_influence():
    query, key, value = random_qkv()
    mask = padding_mask(jnp.array([[4, 5, 0, 0, 0], [6, 7, 8, 9, 0]]))
    moved = jnp.where(mask[:, 0, 0, :, None, None], value, 1e6)
    np.testing.assert_array_equal(
        dot_product_attention(query, key, value, mask), dot_product_attention(query, key, moved, mask)
    )


def test_unsupported_implementations_are_refused():
    query, key, value = random_qkv()
    with pytest.raises(ValueError, match="'flash', but must be"):
        dot_product_attention(query, key, value, implementation="flash")
    with pytest.raises(ValueError, match="no attention dropout"):
        dot_product_attention(
            query, key, value, implementation="cudnn", dropout_rate=0.1, dropout_key=jax.random.key(0)
        )
    with pytest.raises(Exception, match=r"(?i)cudnn|gpu|fp16"):
        dot_product_attention(query, key, value, implementation="cudnn")


def test_attention_dropout_zeroes_weights_and_keeps_the_scale():
    # With equal keys every weight is 1/S, so for values of one the output counts the weights kept.
    length = 1024
    query, key, value = (jnp.zeros((1, length, 1, H)), jnp.zeros((1, length, 1, H)), jnp.ones((1, length, 1, H)))
    output = dot_product_attention(query, key, value, dropout_rate=0.5, dropout_key=jax.random.key(0))
    kept = output[0, :, 0, 0] / 2 * length
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-2)
    assert abs(float(kept.mean()) / length - 0.5) < 0.01
    assert float(kept.std()) > 1
    np.testing.assert_array_equal(dot_product_attention(query, key, value, dropout_rate=0.5), value)


def test_mask_tables():
    tokens = jnp.array([[7, 3, 0, 0], [5, 9, 2, 0]])
    np.testing.assert_array_equal(padding_mask(tokens)[:, 0, 0], [[1, 1, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(padding_mask(tokens, pad_id=9)[:, 0, 0], [[1, 1, 1, 1], [1, 0, 1, 1]])
    np.testing.assert_array_equal(causal_mask(3)[0, 0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(
        segment_mask(jnp.array([[1, 2, 2, 0]]), jnp.array([[1, 1, 2, 3, 0]]))[0, 0],
        [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]],
    )
    assert padding_mask(tokens).dtype == causal_mask(3).dtype == bool


def test_heads_are_consecutive_slices_of_the_width():
    x = jnp.arange(B * T * N * H).reshape(B, T, N * H).astype(jnp.float32)
    heads = split_heads(x, N)
    for n in range(N):
        np.testing.assert_array_equal(heads[:, :, n], x[..., n * H : (n + 1) * H])
    np.testing.assert_array_equal(merge_heads(heads), x)
    np.testing.assert_array_equal(merge_heads(heads[0]), x[0])
    np.testing.assert_array_equal(merge_heads(heads[None]), x[None])


@pytest.mark.parametrize("width", [256, 255])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(width, rate):
    dropped = dropout(jnp.full((512, width), 3.0), rate, jax.random.key(0))
    # Rates are multiples of 1/256.
    exact = round(rate * 256) / 256
    share = float((dropped == 0).mean())
    deviation = (exact * (1 - exact) / dropped.size) ** 0.5
    assert abs(share - exact) < 4 * deviation
    assert abs(float(dropped.mean()) / 3 - 1) < 4 * deviation / (1 - exact)
    np.testing.assert_allclose(dropped[dropped != 0], 3 / (1 - exact), rtol=1e-6)
    # Rows and columns differ: no bit is used for two elements.
    assert len(np.unique(dropped == 0, axis=0)) == 512
    assert len(np.unique(dropped == 0, axis=1).T) == width


def test_dropout_is_a_function_of_its_key():
    x = jnp.ones((16, 16))
    first = dropout(x, 0.3, jax.random.key(1))
    np.testing.assert_array_equal(first, dropout(x, 0.3, jax.random.key(1)))
    assert (first != dropout(x, 0.3, jax.random.key(2))).any()
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(1)), x)
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    # The least rate that is not rounded to 0.
    assert (dropout(jnp.ones((64, 64)), 1 / 256, jax.random.key(1)) == 0).any()
    assert dropout(x.astype(jnp.bfloat16), 0.3, jax.random.key(1)).dtype == jnp.bfloat16
