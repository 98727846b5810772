import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding import keep_top_k, keep_top_p, scale_temperature


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 11), scale=2), jnp.float32)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_top_k_keeps_the_k_likeliest(logits, k):
    kept = np.asarray(keep_top_k(logits, k))
    ranks = np.argsort(np.argsort(-logits, axis=-1), axis=-1)
    np.testing.assert_array_equal(kept, np.where(ranks < k, logits, -np.inf))


@pytest.mark.parametrize("k", [0, 11, 50])
def test_top_k_of_none_or_all_keeps_all(logits, k):
    np.testing.assert_array_equal(keep_top_k(logits, k), logits)


def test_tokens_tied_with_the_last_stay():
    kept = keep_top_k(jnp.array([1.0, 3.0, 2.0, 2.0]), 2)
    np.testing.assert_array_equal(kept, [-np.inf, 3.0, 2.0, 2.0])


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_holds_p(logits, p):
    kept = np.asarray(keep_top_p(logits, p)).reshape(-1, 11)
    for row, result in zip(np.asarray(logits, np.float64).reshape(-1, 11), kept, strict=True):
        probabilities = np.exp(row) / np.exp(row).sum()
        nucleus, mass = set(), 0.0
        for token in np.argsort(-row):
            if mass >= p:
                break
            nucleus.add(int(token))
            mass += probabilities[token]
        assert set(np.flatnonzero(np.isfinite(result)).tolist()) == nucleus


def test_top_p_ends_where_the_sum_is_p():
    kept = keep_top_p(jnp.log(jnp.array([0.25, 0.5, 0.125, 0.125])), 0.5)
    assert np.isfinite(kept).tolist() == [False, True, False, False]


def test_top_p_of_one_keeps_all(logits):
    np.testing.assert_array_equal(keep_top_p(logits, 1.0), logits)


def test_forbidden_tokens_stay_forbidden(logits):
    logits = logits.at[..., 3].set(-jnp.inf)
    for kept in (keep_top_k(logits, 10), keep_top_p(logits, 0.99), scale_temperature(logits, 0.5)):
        assert np.all(np.isneginf(np.asarray(kept)[..., 3]))
        assert not np.any(np.isnan(kept))


def test_temperature_divides(logits):
    np.testing.assert_allclose(scale_temperature(logits, 2.0), logits / 2)
