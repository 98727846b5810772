import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tasks.toys import CLASSES, tiny_config, tiny_params, tiny_tokenizer, write_classifier
from transformer_jax.data import BOS
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.text_classifier import WORD, TextClassifier, TextClassifierSettings
from transformer_jax.tasks.model_folder import load

TEXTS = ["abc", "Bad", "cab ab", "decade", "??", "a", "EDCBA", "字 b", "e", "ace", "abcde ABCDE abcde ABCDE"]
"""The last one is padded to a length of its own."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_classifier(tmp_path_factory.mktemp("run") / "model"))


def with_settings(model, **settings):
    changed = dataclasses.replace(model.settings, **settings)
    pair = dataclasses.replace(tiny_tokenizer(), source=model.tokenizer, target=model.tokenizer)
    return TextClassifier(model.model_config, model.params, pair, changed)


def test_what_was_saved_says_the_same(model):
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer, num_classes=len(CLASSES))
    before = TextClassifier(config, tiny_params(config), tokenizer, TextClassifierSettings(CLASSES))
    assert model.model_config == config
    assert model.settings == before.settings
    np.testing.assert_array_equal(model.probabilities(TEXTS), before.probabilities(TEXTS))


def test_probabilities_are_those_of_the_model_without_padding(model):
    module = nnx.merge(model.graphdef, model.params)
    for text, probabilities in zip(TEXTS[-2:], model.probabilities(TEXTS)[-2:], strict=True):
        logits = module(jnp.asarray([[BOS, *model.tokenizer.encode(text)]]))[0, 0]
        np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)


def test_the_label_is_the_likeliest_of_all_classes(model):
    found = model.classify(TEXTS)
    assert len(found) == len(TEXTS)
    for said, row in zip(found, model.probabilities(TEXTS), strict=True):
        assert tuple(said.probabilities) == CLASSES
        assert sum(said.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert said.probabilities[said.label] == max(said.probabilities.values())
        assert said.label == CLASSES[row.argmax()]
    assert len({said.label for said in found}) > 1, "the toy model should tell its inputs apart"
    assert model.classify([]) == []


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_other_texts_do_not_matter(model, batch_size):
    expected = model.probabilities(TEXTS)
    order = np.random.default_rng(batch_size).permutation(len(TEXTS))
    shuffled = model.probabilities([TEXTS[i] for i in order], batch_size=batch_size)
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-6)
    np.testing.assert_array_equal(shuffled.argmax(1), expected[order].argmax(1))


def test_lowercase_models_read_lowercase(model):
    lowercase = with_settings(model, lowercase=True)
    np.testing.assert_array_equal(lowercase.probabilities(["CaB", "Äb"]), model.probabilities(["cab", "äb"]))
    assert not np.allclose(model.probabilities(["CaB"]), model.probabilities(["cab"]))


def test_what_is_too_long_is_cut(model):
    short = with_settings(model, max_length=5)
    expected = model.probabilities(["abcd"])
    for text in ("abcd", "abcdA", "abcd" + "eE" * 50_000):
        np.testing.assert_allclose(short.probabilities([text]), expected, atol=1e-6)
    assert not np.allclose(model.probabilities(["abcdA"]), expected)


@pytest.mark.parametrize("blank", ["", " \t", "\u3000"])
def test_a_blank_text_has_no_class(model, blank):
    with pytest.raises(UserError, match=r"^Line 2 is blank, so it has no class; leave it out"):
        model.classify(["abc", blank])


@pytest.mark.parametrize("texts", ["abc", [b"abc"], ["abc", None], [3]])
def test_what_is_no_text_is_refused(model, texts):
    with pytest.raises(TypeError, match="str"):
        model.classify(texts)


def test_a_batch_has_at_least_one_text(model):
    with pytest.raises(UserError, match=r"^batch_size is 0, but must be at least 1"):
        model.classify(["abc"], batch_size=0)


def test_classes_and_outputs_are_as_many(model):
    with pytest.raises(UserError, match="3 outputs, but its settings name 2 classes"):
        with_settings(model, classes=CLASSES[:2])


def test_damaged_parameters_are_told(model):
    broken = with_settings(model)
    broken.params = jax.tree.map(lambda x: x * np.nan, model.params)
    with pytest.raises(UserError, match="not numbers"):
        broken.classify(["abc"])


def log_odds(model, text, label):
    [[*shares]] = model._predict([text], 64, None).astype(float)
    place = CLASSES.index(label)
    return np.log(shares.pop(place)) - np.log(sum(shares))


def test_the_effect_of_a_word_is_what_is_lost_without_it(model):
    reported = []
    texts = ["cab, ab Bad-ace!", "字b", "a", "??"]
    found = model.classify(texts, explain=True, report=reported.append)
    assert [said._replace(words=None) for said in found] == [
        said._replace(probabilities=pytest.approx(said.probabilities)) for said in model.classify(texts)
    ]
    assert [[word.text for word in said.words] for said in found] == [["cab", "ab", "Bad-ace"], ["字", "b"], ["a"], []]
    assert reported == [1, 1, 1, 1]
    for text, said in zip(texts, found, strict=True):
        for word in said.words:
            assert text[word.start :].startswith(word.text)
            without = text[: word.start] + text[word.start + len(word.text) :]
            expected = log_odds(model, text, said.label) - log_odds(model, without, said.label)
            assert word.effect == pytest.approx(expected, abs=1e-4)


def test_words_that_are_not_read_have_no_effect_and_are_left_out(model):
    short = with_settings(model, max_length=8)  # and so seven characters
    [said] = short.classify(["abc de cab eee"], explain=True)
    assert [word.text for word in said.words] == ["abc", "de"]
    expected = log_odds(model, "abc de ", said.label) - log_odds(model, " de ", said.label)
    assert said.words[0].effect == pytest.approx(expected, abs=1e-4)
    [said] = short.classify(["abcdeabcde " * 3], explain=True)
    assert said.words == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop: U.S. oil-price 3.5%", ["Don't", "stop", "U", "S", "oil-price", "3", "5"]),
        ("中国队2比0胜 Brasil", ["中", "国", "队", "2", "比", "0", "胜", "Brasil"]),
        ("カタカナとça", [*"カタカナと", "ça"]),
    ],
)
def test_words(text, words):
    assert WORD.findall(text) == words
