"""The search of CTranslate2, against one on lists. tests/interop compares it with CTranslate2 itself."""

import numpy as np
import pytest

from tests.decoding.toys import EOS, PAD, Toy, outputs_of, plain_greedy_search
from transformer_jax.decoding import CONVENTIONS, beam_search, forbid_tokens

NEVER = 4
SEARCH = {"conventions": CONVENTIONS["ctranslate2"], "processors": [forbid_tokens([NEVER])]}


def plain_search(toy, sentence, max_length, alpha, beam_size, min_length=0):
    """The best output, and whether the search reached the length limit."""
    alive, ended, best_has_ended = [(0.0, ())], [], False

    for step in range(max_length):
        candidates = []
        for total, tokens in alive:
            logits = toy.log_probs(sentence, tokens)
            logits[[PAD, NEVER, *([EOS] if step < min_length else [])]] = -np.inf
            log_probs = logits - np.log(np.exp(logits).sum())
            candidates += [(total + log_prob, (*tokens, token)) for token, log_prob in enumerate(log_probs)]
        candidates = sorted(candidates, reverse=True)[: 2 * beam_size]
        for total, tokens in candidates[:beam_size]:
            if tokens[-1] == EOS:
                ended.append((total / (step + 1) ** alpha, tokens))
            elif step + 1 == max_length:
                ended.append((total / (step + 1) ** alpha, (*tokens, EOS)))
        best_has_ended |= candidates[0][1][-1] == EOS
        if step + 1 < max_length and (best_has_ended if alpha == 0 else len(ended) >= beam_size):
            return max(ended), False
        alive = [(total, tokens) for total, tokens in candidates if tokens[-1] != EOS][:beam_size]
    return max(ended), True


@pytest.mark.parametrize(("alpha", "min_length"), [(0.0, 0), (0.6, 0), (1.5, 2)])
def test_beam_search(alpha, min_length):
    toy = Toy(seed=21, batch_size=60, vocab_size=9)
    result = toy.run(
        # Our limit counts the end, theirs does not.
        beam_search,
        beam_size=3,
        max_length=8,
        alpha=alpha,
        min_lengths=min_length + 1,
        **SEARCH,
    )
    expected = [plain_search(toy, sentence, 7, alpha, 3, min_length) for sentence in range(toy.batch_size)]
    assert 0 < sum(to_the_limit for _, to_the_limit in expected) < toy.batch_size
    for sentence, ((score, tokens), _) in enumerate(expected):
        assert outputs_of(result, sentence)[0] == tokens
        assert np.isclose(result.scores[sentence, 0], score, atol=1e-4)


def test_a_beam_of_one_takes_the_likeliest_token():
    toy = Toy(seed=22, batch_size=30, vocab_size=4)
    result = toy.run(beam_search, beam_size=1, max_length=8, conventions=CONVENTIONS["ctranslate2"])
    for sentence in range(toy.batch_size):
        assert outputs_of(result, sentence) == [plain_greedy_search(toy, sentence, 8)]


def test_nothing_left_to_say_is_the_end():
    toy = Toy(seed=23)
    result = toy.run(
        beam_search,
        beam_size=2,
        max_length=6,
        conventions=CONVENTIONS["ctranslate2"],
        processors=[forbid_tokens(range(5))],
    )
    assert outputs_of(result, 0) == [(EOS,)]
    assert np.isfinite(result.scores[0, 0])
