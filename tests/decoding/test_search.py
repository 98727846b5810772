import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tests.decoding.toys import (
    EOS,
    IDS,
    PAD,
    Toy,
    all_outputs,
    outputs_of,
    plain_beam_search,
    plain_greedy_search,
    plain_transformers_search,
    step_fn,
)
from transformer_jax.decoding import (
    CONVENTIONS,
    Conventions,
    beam_search,
    forbid_tokens,
    greedy_search,
    no_repeat_ngram,
    sample,
)
from transformer_jax.system import UserError

LENGTH = 4
NUM_OUTPUTS = 40  # of three words and EOS, up to four tokens: 1 + 3 + 9 + 27


def assert_is(result, sentence, expected):
    """The result holds exactly the expected (score, tokens), in order, and nothing in further slots."""
    assert outputs_of(result, sentence) == [tokens for _, tokens in expected]
    np.testing.assert_allclose(result.scores[sentence, : len(expected)], [score for score, _ in expected], rtol=1e-5)
    assert np.all(np.isneginf(result.scores[sentence, len(expected) :]))
    assert np.all(np.asarray(result.tokens)[sentence, len(expected) :] == PAD)


def assert_equal(result, expected):
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_wide_beam_finds_all_that_brute_force_finds(alpha):
    toy = Toy(seed=1, batch_size=12)
    result = toy.run(beam_search, beam_size=45, max_length=LENGTH, alpha=alpha)
    for sentence in range(toy.batch_size):
        expected = all_outputs(toy, sentence, LENGTH, alpha)
        assert len(expected) == NUM_OUTPUTS
        assert_is(result, sentence, expected)


def test_wide_beam_equals_brute_force_under_constraints():
    toy = Toy(seed=2, batch_size=8)
    max_lengths, min_lengths = [1, 2, 3, 4, 5, 5, 5, 5], [0, 2, 1, 3, 5, 4, 0, 2]
    prefix = [[PAD, PAD], [3, PAD], [4, 3], [PAD, PAD], [PAD, PAD], [2, PAD], [3, 3], [4, 2]]
    result = toy.run(
        beam_search,
        beam_size=90,
        max_length=5,
        max_lengths=jnp.array(max_lengths),
        min_lengths=jnp.array(min_lengths),
        prefix=jnp.array(prefix),
        processors=[forbid_tokens([2]), no_repeat_ngram(2)],
    )
    for sentence in range(toy.batch_size):
        forced = tuple(token for token in prefix[sentence] if token != PAD)

        def keep(tokens, sentence=sentence, forced=forced):
            free = tokens[len(forced) :]
            new_bigrams = [tokens[i - 1 : i + 1] for i in range(max(len(forced), 1), len(tokens))]
            old_bigrams = [tokens[i - 1 : i + 1] for i in range(1, min(len(forced), len(tokens)))]
            repeats = any(b in old_bigrams + new_bigrams[:i] for i, b in enumerate(new_bigrams))
            long_enough = len(tokens) >= min_lengths[sentence]
            return tokens[: len(forced)] == forced and 2 not in free and not repeats and long_enough

        expected = all_outputs(toy, sentence, max_lengths[sentence], 0.6, keep)
        assert expected
        assert_is(result, sentence, expected)


@pytest.mark.parametrize(("beam_size", "stop"), [(2, "bound"), (4, "bound"), (4, "never")])
def test_narrow_beam_equals_a_plain_beam_search(beam_size, stop):
    toy = Toy(seed=3, batch_size=40, vocab_size=7)
    result = toy.run(beam_search, beam_size=beam_size, max_length=8, conventions=Conventions(stop=stop))
    for sentence in range(toy.batch_size):
        assert_is(result, sentence, plain_beam_search(toy, sentence, 8, 0.6, beam_size))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_conventions_of_transformers(alpha):
    toy = Toy(seed=16, batch_size=40, vocab_size=7)
    toy.tables[..., EOS] += 1.5
    search = {"beam_size": 4, "max_length": 5, "alpha": alpha}
    result = toy.run(beam_search, conventions=CONVENTIONS["transformers"], **search)
    expected = [plain_transformers_search(toy, sentence, 5, alpha, 4) for sentence in range(toy.batch_size)]
    for sentence, outputs in enumerate(expected):
        assert_is(result, sentence, outputs)
    best = [outputs[0][1] for outputs in expected]
    assert any(len(tokens) == 5 for outputs in expected for _, tokens in outputs), "the limit must matter"
    assert len({len(tokens) for tokens in best}) > 1
    usual = toy.run(beam_search, **search)
    differs = [outputs_of(usual, sentence)[0] for sentence in range(toy.batch_size)] != best
    assert differs == (alpha > 0)


@pytest.mark.parametrize("field", ["stop", "length_penalty"])
def test_the_types_of_conventions_tell_what_there_is(field):
    with pytest.raises(TypeCheckError, match=field):
        Conventions(**{field: "sometimes"})


def test_a_full_beam_stops_where_its_convention_says():
    toy = Toy(seed=17, batch_size=12, vocab_size=7)
    full, never = (
        toy.run(beam_search, beam_size=3, max_length=9, conventions=Conventions(stop=stop))
        for stop in ("full", "never")
    )
    for sentence in range(toy.batch_size):
        early, late = outputs_of(full, sentence), outputs_of(never, sentence)
        assert len(early) == 3
        assert max(map(len, early)) <= max(map(len, late))
    assert np.asarray(full.lengths).sum() < np.asarray(never.lengths).sum()


@pytest.mark.parametrize(("alpha", "same", "other"), [(0.6, "full", "bound"), (0.0, "bound", "full")])
def test_full_or_best_asks_whether_there_is_a_length_penalty(alpha, same, other):
    toy = Toy(seed=17, batch_size=12, vocab_size=7)
    result, equal, different = (
        toy.run(beam_search, beam_size=3, max_length=9, alpha=alpha, conventions=Conventions(stop=stop))
        for stop in ("full_or_best", same, other)
    )
    assert_equal(result, equal)
    assert (result.tokens != different.tokens).any()


def test_beam_of_one_is_greedy_search():
    toy = Toy(seed=4, batch_size=40, vocab_size=7)
    result = toy.run(beam_search, beam_size=1, max_length=9)
    assert_equal(result, toy.run(greedy_search, max_length=9))
    expected = [plain_greedy_search(toy, sentence, 9) for sentence in range(toy.batch_size)]
    assert len({len(tokens) for tokens in expected}) > 3
    assert [outputs_of(result, sentence)[0] for sentence in range(toy.batch_size)] == expected


@pytest.mark.parametrize(("search", "arguments"), [(beam_search, {"beam_size": 4}), (sample, {"num_samples": 4})])
def test_outputs_are_well_formed_and_log_probs_are_the_models(search, arguments):
    toy = Toy(seed=5, batch_size=20, vocab_size=6)
    if search is sample:
        arguments = arguments | {"keys": jax.random.split(jax.random.key(0), 20), "temperature": 1.7, "top_k": 3}
    result = toy.run(search, max_length=7, processors=[forbid_tokens([3])], **arguments)
    for sentence in range(toy.batch_size):
        outputs = outputs_of(result, sentence)
        assert len(outputs) == 4
        if search is beam_search:
            assert len(set(outputs)) == 4
            assert np.all(np.diff(result.scores[sentence]) <= 0)
        for k, tokens in enumerate(outputs):
            assert tokens[-1] == EOS
            assert not {PAD, EOS, 3} & set(tokens[:-1])
            np.testing.assert_allclose(result.log_probs[sentence, k], toy.log_prob(sentence, tokens), rtol=1e-5)
            assert np.all(np.asarray(result.tokens)[sentence, k, len(tokens) :] == PAD)


@pytest.mark.parametrize("kind", ["greedy", "beam", "sample"])
def test_a_sentence_does_not_depend_on_its_batch(kind):
    toy = Toy(seed=6, batch_size=12, vocab_size=9)
    limits = jnp.array([1, 2, 3, 4, 6, 8, 10, 12, 12, 12, 12, 12])
    keys = jax.random.split(jax.random.key(1), 12)
    prefix = jnp.zeros((12, 2), jnp.int32).at[3:6, 0].set(5)
    search = {"greedy": greedy_search, "beam": beam_search, "sample": sample}[kind]
    beam_size = 1 if kind == "greedy" else 3
    sizes = {"greedy": {}, "beam": {"beam_size": 3}, "sample": {"num_samples": 3, "keys": keys}}[kind]
    common = {"max_length": 12, "processors": [no_repeat_ngram(3)]}
    result = toy.run(search, max_lengths=limits, prefix=prefix, **common, **sizes)

    @jax.jit
    def alone(cache, sizes, limits, prefix):
        sizes = {k: v if k == "keys" else {"beam_size": 3, "num_samples": 3}[k] for k, v in sizes.items()}
        return search(step_fn, cache, batch_size=1, max_lengths=limits, prefix=prefix, **IDS, **common, **sizes)

    for i in range(12):
        own = sizes | ({"keys": keys[i : i + 1]} if kind == "sample" else {})
        expected = alone(toy.only(i).cache(beam_size), own, limits[i : i + 1], prefix[i : i + 1])
        assert_equal([part[i : i + 1] for part in result], expected)


def test_a_sentence_that_is_done_ignores_a_model_gone_mad():
    toy = Toy(seed=7, batch_size=2)
    limits = jnp.array([2, 6])

    def mad_step(tokens, cache):
        logits, cache = step_fn(tokens, cache)
        done = (cache["step"] > 2) & (jnp.arange(2) == 0)
        return jnp.where(done[:, None, None], jnp.nan, logits), cache

    arguments = {"batch_size": 2, "beam_size": 3, "max_length": 6, "max_lengths": limits, **IDS}
    result = beam_search(mad_step, toy.cache(3), **arguments)
    assert_equal(result, beam_search(step_fn, toy.cache(3), **arguments))


def test_early_stop_stops_early():
    toy = Toy(seed=8, batch_size=4)
    toy.tables[..., EOS] += 6.0
    steps = []

    def counting_step(tokens, cache):
        jax.debug.callback(lambda step: steps.append(int(step)), cache["step"])
        return step_fn(tokens, cache)

    arguments = {"batch_size": 4, "beam_size": 2, "max_length": 30, **IDS}
    result = beam_search(counting_step, toy.cache(2), **arguments)
    jax.effects_barrier()
    assert 0 < len(steps) < 10
    assert_equal(result, beam_search(step_fn, toy.cache(2), conventions=Conventions(stop="never"), **arguments))


def test_a_vocabulary_smaller_than_the_beam():
    toy = Toy(seed=9, batch_size=3, vocab_size=3)
    result = toy.run(beam_search, beam_size=8, max_length=3)
    for sentence in range(3):
        expected = all_outputs(toy, sentence, 3, 0.6)
        assert len(expected) == 3
        assert_is(result, sentence, expected)


def test_a_hypothesis_with_nothing_left_to_say_ends():
    toy = Toy(seed=10, batch_size=2)
    for search, sizes in ((beam_search, {"beam_size": 3}), (greedy_search, {})):
        result = toy.run(
            search,
            max_length=6,
            min_lengths=5,
            prefix=jnp.array([[3, 4]] * 2),
            processors=[forbid_tokens(range(5))],
            **sizes,
        )
        for sentence in range(2):
            assert outputs_of(result, sentence) == [(3, 4, EOS)]
        assert not any(np.isnan(part).any() for part in result)


def test_a_prefix_that_the_model_holds_for_impossible_is_still_said():
    toy = Toy(seed=11)
    toy.tables[..., 4] = -np.inf
    result = toy.run(beam_search, beam_size=2, max_length=4, prefix=jnp.array([[4]]))
    assert all(tokens[0] == 4 and 4 not in tokens[1:] for tokens in outputs_of(result, 0))
    assert np.all(np.isneginf(result.log_probs))
    assert np.all(np.isfinite(result.scores))


def test_a_soft_penalty_moves_scores_but_not_log_probs():
    toy = Toy(seed=12, batch_size=4)

    def dislike_three(history, step, log_probs):
        return log_probs.at[..., 3].add(-0.5)

    result = toy.run(beam_search, beam_size=45, max_length=LENGTH, alpha=0.0, processors=[dislike_three])
    for sentence in range(4):
        plain = all_outputs(toy, sentence, LENGTH, 0.0)
        expected = sorted(((score - 0.5 * tokens.count(3), tokens) for score, tokens in plain), reverse=True)
        assert_is(result, sentence, expected)
        own = [toy.log_prob(sentence, tokens) for _, tokens in expected]
        np.testing.assert_allclose(result.log_probs[sentence, :NUM_OUTPUTS], own, rtol=1e-5)


def test_a_prefix_with_eos_ends_and_a_long_one_is_cut():
    toy = Toy(seed=13, batch_size=2)
    prefix = jnp.array([[3, EOS, 4, 4, 4, 4], [3, 4, 3, 4, 3, 4]])
    result = toy.run(greedy_search, max_length=4, prefix=prefix)
    assert [outputs_of(result, i)[0] for i in range(2)] == [(3, EOS), (3, 4, 3, EOS)]


@pytest.mark.parametrize("stop", ["bound", "never"])
@pytest.mark.parametrize("n_best", [1, 3])
def test_n_best_gives_the_first_of_all(n_best, stop):
    toy = Toy(seed=14, batch_size=40, vocab_size=7)
    common = {"beam_size": 4, "max_length": 8}
    everything = toy.run(beam_search, conventions=Conventions(stop="never"), **common)
    result = toy.run(beam_search, n_best=n_best, conventions=Conventions(stop=stop), **common)
    assert result.tokens.shape == (40, n_best, 8)
    assert_equal(result, [part[:, :n_best] for part in everything])


def test_fewer_outputs_stop_earlier():
    toy = Toy(seed=15, batch_size=6, vocab_size=7)
    toy.tables[..., EOS] += 1.0

    def steps_taken(n_best):
        steps = []

        def counting_step(tokens, cache):
            jax.debug.callback(lambda step: steps.append(int(step)), cache["step"])
            return step_fn(tokens, cache)

        beam_search(counting_step, toy.cache(4), batch_size=6, beam_size=4, max_length=30, n_best=n_best, **IDS)
        jax.effects_barrier()
        return len(steps)

    assert 0 < steps_taken(1) < steps_taken(4)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"n_best": 0}, "n_best"),
        ({"n_best": -1}, "n_best"),
        ({"n_best": 3}, "n_best"),
        ({"beam_size": 0}, "beam_size"),
        ({"max_length": 0}, "max_length"),
        ({"pad_id": EOS}, "pad_id"),
    ],
)
def test_impossible_arguments_are_told(arguments, field):
    defaults = {"batch_size": 1, "beam_size": 2, "max_length": 3, **IDS}
    with pytest.raises(UserError, match=field):
        beam_search(step_fn, Toy(0).cache(2), **(defaults | arguments))
