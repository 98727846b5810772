import importlib.util
import inspect
import math
from collections import Counter

import numpy as np
import pytest

from transformer_jax.tasks.classification.metrics import calibration, classification_scores, expected_calibration_error
from transformer_jax.tasks.couplets.rules import couplet_scores, distinct
from transformer_jax.tasks.metrics import bleu_by_length, bleu_tokenizer, exact_match, perplexity, translation_scores

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


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *((code, "zh") for code in ("zh", "zh-CN", "zh_TW", "ZH", "cmn", "zho_Hant", "yue", "cdo", "zh.UTF-8")),
        *((code, "zh") for code in (">>cmn_Hans<<", "<2zh>", "__zh__")),
        *((code, "char") for code in ("th", "km-KH")),
        *((code, "13a") for code in ("", "en", "pt-BR", "de", "hi", "?")),
    ],
)
def test_bleu_follows_the_target_language(language, tokenizer):
    text = "今天天气很好，我们去公园。"
    scores = translation_scores([text], [text], target_language=language)
    assert f"tok:{tokenizer}|" in scores["bleu_signature"]
    assert f"tok:{tokenizer}|" in scores["bleu_lowercase_signature"]
    assert scores["bleu"] == (0 if tokenizer == "13a" else pytest.approx(100))


@pytest.mark.parametrize(
    ("language", "tokenizer"), [("ja", "ja-mecab"), ("jpn_Jpan", "ja-mecab"), ("ko-KR", "ko-mecab")]
)
def test_mecab_is_used_where_it_is_installed(language, tokenizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert bleu_tokenizer(language) == tokenizer
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer(language) == "char"
    text = "今日はとても天気がいいです。"
    assert translation_scores([text], [text], target_language=language)["bleu"] == pytest.approx(100)


def test_perfect_and_hopeless():
    perfect = translation_scores(REFERENCES, REFERENCES)
    assert perfect["bleu"] == pytest.approx(100)
    assert perfect["chrf"] == pytest.approx(100)
    assert translation_scores(["", "", ""], REFERENCES)["bleu"] == 0


def test_couplet_scores_count_characters():
    lowers, references = ["日月同辉山河在", "春雨细无声"], ["日月同辉江河在", "春雨润无声"]
    scores = couplet_scores(lowers, references)
    spaced = [[" ".join(line) for line in lines] for lines in (lowers, references)]
    assert scores["bleu"] == pytest.approx(bleu_by_definition(*spaced))
    assert 0 < scores["bleu"] < 100
    assert "tok:char" in scores["bleu_signature"]
    assert scores["exact_match"] == 0
    assert scores["distinct_1"] == 1
    perfect = couplet_scores(references, references)
    assert (perfect["bleu"], perfect["exact_match"]) == (pytest.approx(100), 1)
    assert list(scores) == ["exact_match", "bleu", "bleu_signature", "distinct_1", "distinct_2"]


def test_distinct_ngrams_by_hand():
    lines = ["春风春雨", "春风"]
    assert distinct(lines, 1) == 3 / 6
    # 春风, 风春, 春雨 and 春风 again: none reaches from one line into the next.
    assert distinct(lines, 2) == 3 / 4
    assert distinct(lines, 5) == 0
    assert distinct([], 1) == 0


def test_exact_match():
    assert exact_match(["a", "b", "c ", "d"], ["a", "x", "c", "d"]) == 0.5


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert perplexity(10 * math.log(7), 10) == pytest.approx(7)


def test_a_perplexity_beyond_what_a_float_holds_is_infinite():
    assert perplexity(1e4, 1) == math.inf
    assert perplexity(math.inf, 1) == math.inf
    assert perplexity(1e4, 100) == pytest.approx(math.exp(100))


@pytest.mark.parametrize("score", [translation_scores, couplet_scores, exact_match])
@pytest.mark.parametrize(("hypotheses", "references"), [(["a", "b"], ["a"]), ([], [])])
def test_unaligned_texts_are_refused(score, hypotheses, references):
    with pytest.raises(ValueError, match="cannot be scored"):
        score(hypotheses, references)


def counts_of(labels, predictions, name):
    """True positives, false positives and false negatives of a class, one example at a time."""
    pairs = list(zip(labels, predictions, strict=True))
    return (
        sum(label == name and prediction == name for label, prediction in pairs),
        sum(label != name and prediction == name for label, prediction in pairs),
        sum(label == name and prediction != name for label, prediction in pairs),
    )


def calibration_error_by_definition(confidences, correct, bins=15):
    """Guo et al. (2017), equations (2) and (3) with M bins ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, bins + 1):
        members = [i for i, c in enumerate(confidences) if (m - 1) / bins < c <= m / bins]
        if members:
            accuracy = sum(correct[i] for i in members) / len(members)
            confidence = sum(confidences[i] for i in members) / len(members)
            total += len(members) / len(confidences) * abs(accuracy - confidence)
    return total


def test_classification_by_hand():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05]])
    scores = classification_scores(np.array([0, 1, 1, 0]), probabilities, ["a", "b", "c"])
    assert scores.class_names == ("a", "b", "c")
    assert scores.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert scores.support.tolist() == [2, 2, 0]
    assert scores.accuracy == 0.75
    assert scores.precision.tolist() == pytest.approx([2 / 3, 1, 0])
    assert scores.recall.tolist() == pytest.approx([1, 0.5, 0])
    assert scores.f1.tolist() == pytest.approx([0.8, 2 / 3, 0])
    assert scores.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2), "c neither occurs nor is predicted"
    # Each example has a bin of its own: right at 0.7, 0.8 and 0.9, wrong at 0.5.
    assert scores.expected_calibration_error == pytest.approx((0.3 + 0.5 + 0.2 + 0.1) / 4)


def test_a_class_that_is_only_predicted_counts():
    scores = classification_scores(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]), ["a", "b"])
    assert scores.f1.tolist() == pytest.approx([2 / 3, 0])
    assert scores.macro_f1 == pytest.approx(1 / 3)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classification_equals_brute_force(classes, dtype):
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 300)
    probabilities = rng.dirichlet(np.ones(classes), 300)
    probabilities[np.arange(300), labels] += rng.random(300)  # better than a guess
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(dtype)
    scores = classification_scores(labels, probabilities, [str(name) for name in range(classes)])

    predictions = [max(range(classes), key=lambda name: row[name]) for row in probabilities]
    correct = [int(label == prediction) for label, prediction in zip(labels, predictions, strict=True)]
    assert 0.3 < scores.accuracy < 1
    assert scores.accuracy == pytest.approx(sum(correct) / 300)
    f1 = []
    for name in range(classes):
        true_positives, false_positives, false_negatives = counts_of(labels, predictions, name)
        assert scores.precision[name] == pytest.approx(true_positives / (true_positives + false_positives))
        assert scores.recall[name] == pytest.approx(true_positives / (true_positives + false_negatives))
        assert scores.support[name] == true_positives + false_negatives
        f1.append(2 * true_positives / (2 * true_positives + false_positives + false_negatives))
    assert scores.f1.tolist() == pytest.approx(f1)
    assert scores.macro_f1 == pytest.approx(sum(f1) / classes)
    confidences = [float(max(row)) for row in probabilities]
    expected = calibration_error_by_definition(confidences, correct)
    assert expected > 0.03
    assert scores.expected_calibration_error == pytest.approx(expected)


def test_calibration_error_at_the_edges():
    ones = np.ones(4)
    assert expected_calibration_error(ones, np.array([True] * 4)) == 0
    assert expected_calibration_error(ones, np.array([False] * 4)) == 1
    assert expected_calibration_error(ones, np.array([True, False] * 2)) == 0.5
    assert expected_calibration_error(0.75 * ones, np.array([True, True, True, False])) == 0
    # 2/3 is the upper edge of the tenth bin; within one bin, too much and too little trust cancel out.
    edges = np.array([0.61, 2 / 3])
    assert expected_calibration_error(edges, np.array([True, False])) == pytest.approx(abs(1 - 0.61 - 2 / 3) / 2)


@pytest.mark.parametrize(
    ("labels", "shape", "names", "message"),
    [
        ([0], (3, 2), ["a", "b"], "3 predictions cannot be scored against 1 labels"),
        ([], (0, 2), ["a", "b"], "0 predictions"),
        ([0], (1, 2), ["a"], "2 classes, but 1 names"),
        ([2], (1, 2), ["a", "b"], "from 0 to 1, but are from 2 to 2"),
        ([-1], (1, 2), ["a", "b"], "from -1 to -1"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, shape, names, message):
    unchecked = inspect.unwrap(classification_scores)  # users don't have shapes checked as these tests do
    with pytest.raises(ValueError, match=message):
        unchecked(np.array(labels, int), np.full(shape, 0.5), names)


def test_calibration_by_bin():
    confidence, correct = np.array([0.05, 0.6, 0.65, 0.61, 1.0]), np.array([False, True, False, True, True])
    found = calibration(confidence, correct)
    assert found.examples.tolist() == [1, *[0] * 7, 1, 2, *[0] * 4, 1]
    assert found.accuracy[[0, 8, 9, 14]] == pytest.approx([0, 1, 0.5, 1])
    assert found.confidence[[0, 8, 9, 14]] == pytest.approx([0.05, 0.6, 0.63, 1])


def test_bleu_by_length():
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(4, 30, 300), *[9] * 200]
    references = [" ".join(rng.choice(list("abcdefgh"), length)) for length in lengths]
    hypotheses = [reference[:-1] + "x" for reference in references]
    found = bleu_by_length(hypotheses, references)
    assert found.overall == pytest.approx(translation_scores(hypotheses, references)["bleu"])
    assert sum(found.sentences) == 500
    assert (found.lengths[0][0], found.lengths[-1][1]) == (min(lengths), max(lengths))
    for (low, high), bleu, count, (following, _) in zip(
        found.lengths, found.bleu, found.sentences, [*found.lengths[1:], (99, 99)], strict=True
    ):
        members = [i for i, length in enumerate(lengths) if low <= length <= high]
        assert (len(members), high < following) == (count, True)
        assert bleu == pytest.approx(
            bleu_by_definition([hypotheses[i] for i in members], [references[i] for i in members])
        )
    assert (9, 9) in found.lengths
    assert all(20 <= count <= 94 for (low, _), count in zip(found.lengths, found.sentences, strict=True) if low != 9)
    alone = bleu_by_length(["", "天气"], ["天", "天气"], target_language="zh")
    assert (alone.lengths, alone.sentences.tolist()) == ([(1, 1), (2, 2)], [1, 1])
