"""Promise: the decoding of a sentence does not depend on its batch."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.tasks.toys import CHARACTERS, MARKS, tiny_config, tiny_tokenizer
from transformer_jax.nn import Seq2Seq, split
from transformer_jax.tasks.couplets.generate import CoupletWriter, CoupletWriterSettings
from transformer_jax.tasks.translation.translator import Translator, TranslatorSettings

FLOAT32 = 1e-5
"""Bound of the relative difference of log-probabilities: products of another shape add up in another order."""
BFLOAT16 = 0.05
"""Bound, in nats, of the difference of the log-probability of a token."""

LETTERS = "abcde ABCDE"
SEARCHES = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 4},
    "n_best": {"beam_size": 4, "n_best": 3},
    "constrained": {"beam_size": 2, "prefix": "da", "no_repeat_ngram": 2, "min_length": 6},
}


def texts(alphabet, count, longest=25, seed=0):
    """Of two padded lengths, the first of them once more among the last."""
    rng = np.random.default_rng(seed)
    lines = ["".join(rng.choice([*alphabet], rng.integers(1, longest))).strip() or "a" for _ in range(count)]
    return [*lines, lines[0]]


def initial_params(config):
    """Weights as training starts from: larger ones, in models this small, make much of every rounding."""
    return split(Seq2Seq(config, rngs=nnx.Rngs(0)))[1]


def translator(dtype="float32"):
    tokenizer = tiny_tokenizer(LETTERS)
    config = dataclasses.replace(tiny_config(tokenizer), d_model=32, d_ff=64, dtype=dtype)
    return Translator(config, initial_params(config), tokenizer, TranslatorSettings())


def assert_same(found, expected):
    assert [[output.text for output in outputs] for outputs in found] == [
        [output.text for output in outputs] for outputs in expected
    ]
    for outputs, others in zip(found, expected, strict=True):
        for output, other in zip(outputs, others, strict=True):
            assert output.score == pytest.approx(other.score, rel=FLOAT32, abs=FLOAT32)
            assert output.log_prob == pytest.approx(other.log_prob, rel=FLOAT32, abs=FLOAT32)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_sentence_alone_and_in_batches(search):
    model, lines, options = translator(), texts(LETTERS, 14), SEARCHES[search] | {"max_extra_tokens": 8}
    together = model.search(lines, **options)
    assert_same(together[:1], together[-1:])
    assert_same([model.search([line], **options)[0] for line in lines[:3]], together[:3])
    assert_same(model.search(lines[::-1], batch_size=1, **options), together[::-1])


def test_samples_follow_the_seed_and_the_place():
    model, lines = translator(), texts(LETTERS, 14)
    options = {"temperature": 1.0, "n_best": 2, "seed": 3, "max_extra_tokens": 8}
    together = model.search(lines, **options)
    assert_same(model.search(lines[:1], **options), together[:1])
    assert_same(model.search(lines, batch_size=1, **options), together)
    assert_same(model.search([*lines[:4], *texts(LETTERS, 9, seed=1)], **options)[:4], together[:4])


def test_the_rules_of_couplets():
    tokenizer = tiny_tokenizer(CHARACTERS + MARKS)
    config = dataclasses.replace(tiny_config(tokenizer), d_model=32, d_ff=64)
    model = CoupletWriter(config, initial_params(config), tokenizer, CoupletWriterSettings())
    lines = texts(CHARACTERS[:20] + MARKS, 14, longest=14)
    options = {"beam_size": 3, "n_best": 2, "rules": "all,tones=1"}
    together = model.search(lines, **options)
    assert_same([model.search([line], **options)[0] for line in lines[:4]], together[:4])
    assert_same(model.search(lines[::-1], batch_size=1, **options), together[::-1])


@pytest.mark.parametrize(("dtype", "bound"), [("float32", FLOAT32), ("bfloat16", BFLOAT16)])
def test_the_probability_of_each_token(dtype, bound):
    model, lines = translator(dtype), texts(LETTERS, 14)
    targets = lines[::-1]
    together = model.score(lines, targets)
    differences = [
        np.abs(model.score([line], [target])[0].token_log_probs - score.token_log_probs).max()
        for line, target, score in zip(lines, targets, together, strict=True)
    ]
    assert max(differences) <= bound
