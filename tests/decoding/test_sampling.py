import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.toys import PAD, Toy, all_outputs, outputs_of
from transformer_jax.decoding import forbid_tokens, greedy_search, sample
from transformer_jax.system import UserError

NUM_SAMPLES = 4000


def chi_square(counts, probabilities):
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_outputs_are_drawn_as_often_as_they_are_likely():
    toy = Toy(seed=21, scale=1.0)
    processors = [forbid_tokens([2, 4])]  # PAD also: two choices are left at each step, renormalized
    result = toy.run(
        sample,
        num_samples=NUM_SAMPLES,
        keys=jax.random.split(jax.random.key(3), 1),
        max_length=4,
        processors=processors,
    )
    drawn = outputs_of(result, 0)
    outputs = [tokens for _, tokens in all_outputs(toy, 0, 4, 0.0, keep=lambda tokens: not {2, 4} & set(tokens))]
    assert set(drawn) == set(outputs)

    def probability(tokens):
        product = 1.0
        for i, token in enumerate(tokens[:3]):  # the fourth is forced
            end_and_three = np.exp(toy.log_probs(0, tokens[:i])[[1, 3]])
            product *= (end_and_three / end_and_three.sum())[0 if token == 1 else 1]
        return product

    probabilities = np.array([probability(tokens) for tokens in outputs])
    np.testing.assert_allclose(probabilities.sum(), 1.0)
    counts = np.array([drawn.count(tokens) for tokens in outputs])
    assert chi_square(counts, probabilities) < 16.3  # 0.1 % with 3 degrees of freedom


@pytest.mark.parametrize(
    "arguments", [{"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"temperature": 1.5, "top_p": 0.8}]
)
def test_first_tokens_follow_the_filtered_softmax(arguments):
    toy = Toy(seed=22, batch_size=2, vocab_size=12, scale=1.0)
    keys = jax.random.split(jax.random.key(4), 2)
    result = toy.run(sample, num_samples=NUM_SAMPLES, keys=keys, max_length=2, **arguments)
    for sentence in range(2):
        logits = toy.log_probs(sentence, ())
        logits[PAD] = -np.inf
        probabilities = np.exp(logits / arguments.get("temperature", 1.0))
        order = np.argsort(-probabilities)
        probabilities[order[arguments.get("top_k", 12) :]] = 0
        before = np.cumsum(probabilities[order]) / probabilities.sum() - probabilities[order] / probabilities.sum()
        probabilities[order[before >= arguments.get("top_p", 1.0)]] = 0
        probabilities /= probabilities.sum()
        counts = np.bincount(np.asarray(result.tokens)[sentence, :, 0], minlength=12)
        possible = probabilities > 0
        assert counts[~possible].sum() == 0
        assert possible.sum() > 2
        assert chi_square(counts[possible], probabilities[possible]) < 31.3  # 0.1 % with 11 degrees of freedom


def test_a_sample_depends_on_its_key_and_number_alone():
    toy = Toy(seed=23, batch_size=3, vocab_size=9)
    toy.tables[:] = toy.tables[0]
    keys = jax.random.split(jax.random.key(5), 2)[jnp.array([0, 0, 1])]
    five = toy.run(sample, num_samples=5, keys=keys, max_length=8)
    two = toy.run(sample, num_samples=2, keys=keys, max_length=8)
    np.testing.assert_array_equal(five.tokens[:, :2], two.tokens)
    assert outputs_of(five, 0) == outputs_of(five, 1)
    assert outputs_of(five, 0) != outputs_of(five, 2)
    assert len(set(outputs_of(five, 0))) > 1


def test_top_k_of_one_is_greedy_search():
    toy = Toy(seed=24, batch_size=5, vocab_size=9)
    keys = jax.random.split(jax.random.key(7), 5)
    arguments = {"max_length": 8, "min_lengths": jnp.array([0, 2, 4, 6, 8])}
    drawn = toy.run(sample, num_samples=1, keys=keys, top_k=1, **arguments)
    greedy = toy.run(greedy_search, alpha=0.0, **arguments)
    for ours, theirs in zip(drawn, greedy, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.5), ("top_k", -1), ("num_samples", 0)]
)
def test_impossible_arguments_are_told(field, value):
    arguments = {"num_samples": 1, "keys": jax.random.split(jax.random.key(0), 1), "max_length": 3} | {field: value}
    with pytest.raises(UserError, match=field):
        Toy(0).run(sample, **arguments)
