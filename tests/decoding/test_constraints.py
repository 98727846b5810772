import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding import forbid_sequences, forbid_tokens, min_length, no_repeat_ngram, renormalize

V = 4


def forbidden(processor, history, step):
    log_probs = jnp.full((*history.shape[:2], V), -1.5)
    processed = processor(jnp.asarray(history), jnp.asarray(step), log_probs)
    assert np.all(np.isneginf(processed) | (np.asarray(processed) == np.asarray(log_probs)))
    return np.isneginf(processed)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_repeat_ngram_equals_a_plain_search(n):
    rng = np.random.default_rng(n)
    processor, num_forbidden = jax.jit(no_repeat_ngram(n)), 0
    for step in range(13):
        history = np.zeros((6, 2, 12), np.int32)
        history[:, :, :step] = rng.integers(0, 2, size=(6, 2, step))
        result = forbidden(processor, history, step)
        for b, k in np.ndindex(6, 2):
            tokens = history[b, k, :step].tolist()
            ngrams = {tuple(tokens[i : i + n]) for i in range(step - n + 1)}
            recent = tokens[step - n + 1 :]
            expected = [len(recent) == n - 1 and (*recent, token) in ngrams for token in range(V)]
            assert result[b, k].tolist() == expected
            num_forbidden += sum(expected)
    assert num_forbidden > 30


def test_an_ngram_longer_than_the_output_cannot_repeat():
    assert not forbidden(no_repeat_ngram(5), np.ones((1, 1, 4), np.int32), 4).any()


def test_forbid_tokens():
    assert (
        forbidden(forbid_tokens([0, 3]), np.zeros((2, 3, 5), np.int32), 1).tolist()
        == [[[True, False, False, True]] * 3] * 2
    )
    assert not forbidden(forbid_tokens([]), np.zeros((2, 3, 5), np.int32), 1).any()


def test_forbid_sequences_equals_a_plain_search():
    sequences = ((3,), (1, 2), (2, 2, 1), (1, 2), (1, 1, 1, 1), (2,) * 9, (1,) * 100_000)
    processor, num_forbidden = jax.jit(forbid_sequences(sequences)), 0
    rng = np.random.default_rng(3)
    for step in range(9):
        history = np.zeros((40, 2, 8), np.int32)
        history[:, :, :step] = rng.integers(1, 3, size=(40, 2, step))
        result = forbidden(processor, history, step)
        for b, k in np.ndindex(40, 2):
            tokens = tuple(history[b, k, :step].tolist())
            expected = [any((*tokens, token)[-len(s) :] == s for s in sequences) for token in range(V)]
            assert result[b, k].tolist() == expected
            num_forbidden += sum(expected[:3])
    assert num_forbidden > 50


def test_many_sequences_make_as_small_a_program_as_few():
    history, step, log_probs = jnp.zeros((2, 2, 8), jnp.int32), jnp.asarray(3), jnp.zeros((2, 2, 2000))

    def size(sequences):
        return len(jax.make_jaxpr(forbid_sequences(sequences))(history, step, log_probs).eqns)

    singles, pairs = [(token,) for token in range(1000)], [(token, token + 1) for token in range(1000)]
    assert size([*singles[:2], *pairs[:2]]) == size(singles + pairs)


def test_renormalize_lets_what_is_left_add_up_to_1():
    log_probs = jnp.log(jnp.array([[[0.1, 0.3, 0.2, 0.4]]])).at[..., 3].set(-jnp.inf)
    processed = renormalize(jnp.zeros((1, 1, 5), jnp.int32), jnp.asarray(1), log_probs)
    np.testing.assert_allclose(np.exp(processed), [[[1 / 6, 1 / 2, 1 / 3, 0]]], rtol=1e-6)


def test_min_length_counts_the_eos():
    for step in range(4):
        history = np.zeros((2, 1, 5), np.int32)
        assert forbidden(min_length(3, eos_id=1), history, step)[:, 0, 1].tolist() == [step < 2] * 2
        one_each = forbidden(min_length(jnp.array([1, 4]), eos_id=1), history, step)
        assert one_each[:, 0].tolist() == [[False] * V, [False, step < 3, False, False]]
