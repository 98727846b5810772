import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.toys import EOS, IDS, Toy, outputs_of, step_fn
from transformer_jax.decoding import forbid_tokens, greedy_search, no_repeat_ngram, sample, stream
from transformer_jax.decoding.search import _jitted_step
from transformer_jax.system import UserError

PROCESSORS = (forbid_tokens([2]), no_repeat_ngram(2))


JITTED_STEP_FN = jax.jit(step_fn)


def test_stream_equals_greedy_search():
    toy = Toy(seed=31, batch_size=6, vocab_size=8)
    result = toy.run(greedy_search, max_length=9)
    for sentence in range(6):
        streamed = tuple(stream(JITTED_STEP_FN, toy.only(sentence).cache(1), max_length=9, **IDS))
        assert [streamed] == outputs_of(result, sentence)


def test_stream_equals_sample_under_constraints():
    toy = Toy(seed=32, batch_size=6, vocab_size=8)
    keys = jax.random.split(jax.random.key(0), 6)
    prefix = jnp.array([[3, 4]] * 6)
    common = {"max_length": 9, "processors": PROCESSORS, "temperature": 1.3, "top_k": 5, "top_p": 0.9}
    result = toy.run(sample, num_samples=1, keys=keys, min_lengths=5, prefix=prefix, **common)
    for sentence in range(6):
        cache = toy.only(sentence).cache(1)
        streamed = tuple(
            stream(JITTED_STEP_FN, cache, key=keys[sentence], min_length=5, prefix=prefix[sentence], **IDS, **common)
        )
        assert [streamed] == outputs_of(result, sentence)
        assert streamed[:2] == (3, 4)
        assert streamed[-1] == EOS


def test_a_limit_is_one_of_max_lengths():
    toy = Toy(seed=33, batch_size=6, vocab_size=8)
    toy.tables[..., EOS] -= 3.0
    limits = [1, 2, 3, 5, 9, 12]
    result = toy.run(greedy_search, max_length=9, max_lengths=jnp.array(limits))
    for sentence, limit in enumerate(limits):
        cache = toy.only(sentence).cache(1)
        streamed = tuple(stream(JITTED_STEP_FN, cache, max_length=9, limit=limit, **IDS))
        assert [streamed] == outputs_of(result, sentence)
        assert len(streamed) <= min(limit, 9)
        assert streamed[-1] == EOS


def test_another_sentence_with_another_limit_compiles_nothing():
    toy = Toy(seed=34, batch_size=2, vocab_size=8)
    toy.tables[..., EOS] -= 9.0

    def read(sentence, limit, max_length=10):
        options = {"max_length": max_length, "limit": limit, "processors": PROCESSORS, **IDS}
        return list(stream(JITTED_STEP_FN, toy.only(sentence).cache(1), **options))

    first = read(0, 4)
    compiled = _jitted_step._cache_size()
    second = read(1, 7)
    assert (len(first), len(second)) == (4, 7)
    assert _jitted_step._cache_size() == compiled
    read(0, 4, max_length=11)
    assert _jitted_step._cache_size() == compiled + 1, "the count counts"


def test_a_token_comes_before_the_next_step_is_taken():
    toy = Toy(0)
    toy.tables[..., EOS] = -9.0
    steps = []

    def counting_step(tokens, cache):
        steps.append(np.asarray(tokens).item())
        return step_fn(tokens, cache)

    tokens = stream(counting_step, toy.cache(1), max_length=6, **IDS)
    assert not steps
    for count in range(1, 4):
        next(tokens)
        assert len(steps) == count


def test_impossible_arguments_are_told():
    with pytest.raises(UserError, match="max_length"):
        next(stream(step_fn, Toy(0).cache(1), max_length=0, **IDS))
