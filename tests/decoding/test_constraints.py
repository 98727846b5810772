import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding import forbid_sequences, forbid_tokens, min_length, no_repeat_ngram, renormalize
from transformer_jax.decoding.constraints import constrain
from transformer_jax.sharding import enable_x64

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


def test_forbid_sequences_under_64_bits_and_strict_promotion():
    history = np.array([[[1, 2, 0]]], np.int32)
    with enable_x64(True), jax.numpy_dtype_promotion("strict"):
        processed = jax.jit(forbid_sequences([(1, 2, 3)]))(history, np.int32(2), np.zeros((1, 1, V), np.float32))
    assert np.isneginf(processed).tolist() == [[[False, False, False, True]]]


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


def plain_constrain(log_probs, step, max_length, min_length, prefix, forbidden, eos, pad):
    """`constrain` for one hypothesis: what is forced, else what is allowed, else the end."""
    allowed = log_probs.copy()
    allowed[[*forbidden, pad]] = -np.inf
    if step + 1 < min_length:
        allowed[eos] = -np.inf
    forced = eos if step + 1 >= max_length else prefix[step] if prefix[step] != pad else None
    if forced is None and np.isfinite(allowed).any():
        return allowed
    forced = eos if forced is None else forced
    only = np.full_like(log_probs, -np.inf)
    only[forced] = max(log_probs[forced], -1e9)
    return only


# Marian's end of sentence is 0, and its padding the last id.
@pytest.mark.parametrize(("eos", "pad"), [(1, 0), (0, V - 1), (V - 1, 1)])
@pytest.mark.parametrize("forbidden", [(), (2,), tuple(range(V))])
def test_all_constraints_equal_plain_python(eos, pad, forbidden):
    rng = np.random.default_rng(5)
    batch_size, length = 40, 6
    max_lengths, min_lengths = rng.integers(1, length + 1, batch_size), rng.integers(0, length, batch_size)
    prefix = np.full((batch_size, length), pad)
    prefix[:15, :3] = rng.integers(0, V, (15, 3))  # some begin with the id of padding, and are free there
    ids = {"eos_id": eos, "pad_id": pad, "processors": [forbid_tokens(forbidden)]}
    run = jax.jit(lambda *arrays, **limits: constrain(*arrays, **limits, **ids))
    for step in range(length):
        log_probs = np.log(rng.random((batch_size, 2, V))).astype(np.float32)
        log_probs[rng.random(log_probs.shape) < 0.3] = -np.inf
        limits = {"max_lengths": max_lengths, "min_lengths": min_lengths, "prefix": prefix}
        limits = {name: jnp.asarray(values, jnp.int32) for name, values in limits.items()}
        actual = run(jnp.asarray(log_probs), jnp.full((batch_size, 2, length), pad), jnp.asarray(step), **limits)
        for b, k in np.ndindex(batch_size, 2):
            limits_here = max_lengths[b], min_lengths[b], prefix[b]
            expected = plain_constrain(log_probs[b, k], step, *limits_here, forbidden, eos, pad)
            np.testing.assert_array_equal(actual[b, k], expected)
