import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.tasks.toys import TEXTS, tiny_config, tiny_params, tiny_tokenizer, write_bundle
from transformer_jax.decoding.generator import Generator
from transformer_jax.system import UserError
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator, TranslatorSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_bundle(tmp_path_factory.mktemp("run") / "model"))


def with_settings(model, config=None, **settings):
    config = model.model_config if config is None else config
    changed = dataclasses.replace(model.settings, **settings)
    return Translator(config, model.params, model.tokenizer, changed)


def test_every_line_gives_one_line_and_blank_ones_stay_blank(model):
    outputs = model.translate(TEXTS)
    assert len(outputs) == len(TEXTS)
    assert [not output for output in outputs] == [not text.strip() for text in TEXTS]
    assert len(set(outputs)) > 3, "the toy model should tell its inputs apart"


def test_only_blank_lines(model):
    assert model.translate(["", "  "]) == ["", ""]
    assert model.translate([]) == []


def test_other_lines_do_not_matter(model):
    assert [model.translate([text])[0] for text in TEXTS] == model.translate(TEXTS)
    assert model.translate(TEXTS[::-1], batch_size=2) == model.translate(TEXTS)[::-1]


def test_the_models_own_settings_hold_unless_told_otherwise(model):
    assert model.translate(TEXTS) == model.translate(TEXTS, beam_size=2, alpha=0.6)
    assert with_settings(model, decoding=dataclasses.replace(model.settings.decoding, beam_size=1)).translate(
        TEXTS
    ) == model.translate(TEXTS, beam_size=1)


def test_n_best_are_sorted_different_and_begin_with_the_best(model):
    found = model.translate(TEXTS, n_best=2)
    assert [translations[0].text for translations in found] == model.translate(TEXTS)
    for text, translations in zip(TEXTS, found, strict=True):
        scores = [translation.score for translation in translations]
        assert scores == sorted(scores, reverse=True)
        assert len({translation.text for translation in translations}) == len(translations)
        assert len(translations) == (2 if text.strip() else 1)


def test_the_search_reports_the_log_probability_that_scoring_finds(model):
    filled = [text for text in TEXTS if text.strip()]
    best = [translations[0] for translations in model.search(filled)]
    scores = model.score(filled, [translation.text for translation in best])
    for translation, score in zip(best, scores, strict=True):
        assert score.log_prob == pytest.approx(translation.log_prob, abs=1e-4)
        assert score.log_prob == pytest.approx(score.token_log_probs.sum(), abs=1e-4)
        assert score.tokens == [*translation.text, "</s>"]
        # Section 6.1: |Y| counts the end of sentence.
        assert translation.score == pytest.approx(translation.log_prob / ((5 + len(score.tokens)) / 6) ** 0.6, abs=1e-4)


def test_a_stream_adds_up_to_the_greedy_translation(model):
    for text, expected in zip(TEXTS, model.translate(TEXTS, beam_size=1), strict=True):
        pieces = list(model.stream(text))
        assert "".join(pieces) == expected
        assert len(pieces) == len(expected), "a character at a time"


def test_alignments_are_distributions_over_the_source(model):
    for text, [translation] in zip(TEXTS, model.translate(TEXTS, return_attention=True), strict=True):
        if not text.strip():
            assert translation.alignment is None
            continue
        source, target, weights = translation.alignment
        assert "".join(target) == translation.text + "</s>"
        assert len(source) == len(text) + 1
        assert source[-1] == "</s>"
        assert weights.shape == (1, 2, len(target), len(source))
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_a_prefix_is_kept(model):
    outputs = model.translate(TEXTS, prefix="da")
    assert [output[:2] for output in outputs] == ["da" if text.strip() else "" for text in TEXTS]


def test_lowercase_models_read_lowercase(model):
    lowercase = with_settings(model, lowercase=True)
    assert lowercase.translate(["CaB", "ÄbC"]) == model.translate(["cab", "äbc"])
    assert lowercase.translate(["cab"], prefix="DA") == model.translate(["cab"], prefix="da")
    assert lowercase.score(["CAB"], ["DA"])[0].log_prob == model.score(["cab"], ["da"])[0].log_prob
    assert model.translate(["CaB"]) != model.translate(["cab"])


def test_threads_share_a_model(model):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model.translate, [TEXTS] * 8)) == [model.translate(TEXTS)] * 8


def no_work(*arguments, **options):
    raise AssertionError("the model ran")


@pytest.mark.parametrize(
    ("long", "what"),
    [
        ("abcde " * 2_000, r"12,001 tokens, but the limit is 1,024"),
        # One token to sentencepiece, were it of unknown characters.
        ("字" * 100_000, r"100,000 characters, but the limit is 32,768"),
    ],
)
@pytest.mark.parametrize("kind", ["translate", "stream", "score"])
def test_a_line_that_is_too_long_is_named_before_any_work(model, monkeypatch, kind, long, what):
    for name in ("generate", "stream", "score"):
        monkeypatch.setattr(Generator, name, no_work)
    calls = {
        "translate": lambda: model.translate(["abc", long]),
        "stream": lambda: list(model.stream(long)),
        "score": lambda: model.score(["abc", "abc"], ["abc", long]),
    }
    line = {"translate": "Line 2", "stream": "Line 1", "score": "Target line 2"}[kind]
    with pytest.raises(UserError, match=rf"{line} has {what}; split it\."):
        calls[kind]()


def test_the_limit_itself_is_allowed(model):
    short = with_settings(model, max_source_length=8)
    assert short.translate(["abcabca"]) == model.translate(["abcabca"])
    with pytest.raises(UserError, match="9 tokens, but the limit is 8"):
        short.translate(["abcabcab"])


def test_learned_positions_are_a_limit_of_their_own():
    tokenizer = tiny_tokenizer()
    config = dataclasses.replace(tiny_config(tokenizer), positions="learned", max_positions=6)
    model = Translator(config, tiny_params(config), tokenizer)
    with pytest.raises(UserError, match="9 tokens, but the limit is 6"):
        model.translate(["abcabcab"])
    assert len(model.translate(["abcab"], min_length=6)[0]) == 5


@pytest.mark.parametrize("texts", ["abc", [b"abc"], ["abc", None], [3]])
def test_what_is_no_text_is_refused(model, texts):
    with pytest.raises(TypeError, match="str"):
        model.translate(texts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", 0),
        ("n_best", 0),
        ("batch_size", 0),
        ("alpha", float("nan")),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_length", -1),
        ("max_length", 0),
        ("no_repeat_ngram", -1),
        ("seed", -1),
    ],
)
def test_options_out_of_range_are_named(model, name, value):
    with pytest.raises(UserError, match=f"^{name} is {value}, but must be"):
        model.translate(["abc"], **{name: value})


def test_unknown_options_are_refused(model):
    with pytest.raises(TypeError, match="beams"):
        model.translate(["abc"], beams=3)


def test_scoring_needs_pairs(model):
    with pytest.raises(UserError, match="2 sources, but 1 targets"):
        model.score(["abc", "abc"], ["abc"])


def test_defaults():
    settings = TranslatorSettings()
    assert (settings.decoding.beam_size, settings.decoding.alpha, settings.max_source_length) == (4, 0.6, 1024)
