import math
from collections import Counter

import pytest

from transformer_jax.metrics import exact_match, perplexity, translation_scores

HYPOTHESES = ["The small cat sat on the mat .", "a dog runs through deep snow", "Two men"]
REFERENCES = ["The small cat sat on a mat .", "A dog runs through the deep snow", "Two men are cooking"]


def bleu_by_definition(hypotheses, references):
    """Papineni et al. (2002), for texts whose tokens are separated by spaces already."""
    matches, totals = [0] * 4, [0] * 4
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.split(), reference.split()
        for n in range(1, 5):
            h_ngrams, r_ngrams = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (h, r))
            matches[n - 1] += (h_ngrams & r_ngrams).total()
            totals[n - 1] += h_ngrams.total()
    h_length, r_length = (sum(len(t.split()) for t in texts) for texts in (hypotheses, references))
    precision = math.prod(m / t for m, t in zip(matches, totals, strict=True)) ** 0.25
    return 100 * precision * min(1.0, math.exp(1 - r_length / h_length))


def test_bleu_equals_the_definition():
    scores = translation_scores(HYPOTHESES, REFERENCES)
    assert scores["bleu"] == pytest.approx(bleu_by_definition(HYPOTHESES, REFERENCES))
    lower = [[text.lower() for text in texts] for texts in (HYPOTHESES, REFERENCES)]
    assert scores["bleu_lowercase"] == pytest.approx(bleu_by_definition(*lower))
    assert scores["bleu"] < scores["bleu_lowercase"] < 100


def test_signatures_say_what_was_counted():
    scores = translation_scores(HYPOTHESES, REFERENCES)
    assert "case:mixed" in scores["bleu_signature"]
    assert "tok:13a" in scores["bleu_signature"]
    assert "case:lc" in scores["bleu_lowercase_signature"]
    assert "nc:6" in scores["chrf_signature"]
    assert list(scores) == [
        "bleu",
        "bleu_signature",
        "bleu_lowercase",
        "bleu_lowercase_signature",
        "chrf",
        "chrf_signature",
    ]


def test_perfect_and_hopeless():
    perfect = translation_scores(REFERENCES, REFERENCES)
    assert perfect["bleu"] == pytest.approx(100)
    assert perfect["chrf"] == pytest.approx(100)
    assert translation_scores(["", "", ""], REFERENCES)["bleu"] == 0


def test_exact_match():
    assert exact_match(["a", "b", "c ", "d"], ["a", "x", "c", "d"]) == 0.5


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity(10 * math.log(7), 10) == pytest.approx(7)


def test_a_perplexity_beyond_what_a_float_holds_is_infinite():
    assert perplexity(1e4, 1) == math.inf
    assert perplexity(math.inf, 1) == math.inf
    assert perplexity(1e4, 100) == pytest.approx(math.exp(100))


@pytest.mark.parametrize("score", [translation_scores, exact_match])
@pytest.mark.parametrize(("hypotheses", "references"), [(["a", "b"], ["a"]), ([], [])])
def test_unaligned_texts_are_refused(score, hypotheses, references):
    with pytest.raises(ValueError, match="cannot be scored"):
        score(hypotheses, references)
