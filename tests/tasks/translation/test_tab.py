"""The tab of translators: what is shown of a translation, and why there is none."""

import html
import json
import re

import numpy as np
import pytest

from tests.tasks.toys import write_bundle
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.tab import MOST_CHARACTERS, Phrase, escape
from transformer_jax.tasks.translation.tab import TranslationTab


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_bundle(tmp_path_factory.mktemp("model") / "model", max_source_length=20))


@pytest.fixture(scope="module")
def tab(model):
    return TranslationTab({"toy": model})


def test_alternatives_with_scores_attention_and_alignment(tab, model):
    content, message = tab.respond("toy", "cab ab", 3, 2, 0.4, language="en")
    [expected] = model.search(["cab ab"], n_best=3, beam_size=3, alpha=0.4, return_attention=True)
    assert message == ""
    texts = re.findall(r'<span class="text">(.*?)</span>', content)
    assert [html.unescape(text) for text in texts] == [each.text for each in expected]
    scores = re.findall(r'<span class="score"[^>]*>(.*?)</span>', content)
    assert scores == [f"{each.score:.2f}" for each in expected]
    for data, each in zip(re.findall(r'data-weights="(.*?)"', content), expected, strict=True):
        weights = each.alignment.weights.mean(axis=(0, 1))
        np.testing.assert_allclose(np.array(json.loads(html.unescape(data))) / 1000, weights, atol=0.5e-3)
    best = expected[0].alignment
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", content)[: len(best.target)]
    weights = best.weights.mean(axis=(0, 1))
    assert [float(row[2]) for row in rows] == pytest.approx(weights.max(axis=1), abs=0.006)
    assert [html.unescape(row[1]) for row in rows] == [
        best.source[place].replace(" ", "␣") for place in weights.argmax(axis=1)
    ]


def test_one_piece_of_each_row_is_reached_with_the_tab_key(tab):
    content, _ = tab.respond("toy", "abc", 1, 2, 0.6, language="en")
    assert content.count('tabindex="0"') == 2
    assert 'tabindex="-1"' in content


def test_what_cannot_be_done_is_one_sentence(tab):
    long = tab.respond("toy", "a" * 30, 1, 1, 0.6, language="en")
    assert long.content == ""
    assert "The text has 31 tokens, but the limit is 20; split it." in html.unescape(long.message)
    assert 'role="alert"' in long.message
    longer = tab.respond("toy", "a" * (MOST_CHARACTERS + 1), 1, 1, 0.6, language="zh-CN")
    assert "The text has 20,001 characters, but the limit here is 20,000; shorten it." in longer.message
    assert "无法处理" in longer.message
    assert "alpha is 99" in html.unescape(tab.respond("toy", "abc", 1, 1, 99.0, language="en").message)
    assert tab.respond("toy", " \n", 1, 1, 0.6, language="en") == ("", "")


@pytest.mark.parametrize(
    ("language", "said"),
    [("zh", "对齐"), ("zh-CN,zh;q=0.9,en;q=0.8", "对齐"), ("en-US,en;q=0.9,zh;q=0.8", "Alignment"), ("", "Alignment")],
)
def test_answers_are_in_the_language_of_the_browser(tab, language, said):
    content, _ = tab.respond("toy", "abc", 1, 1, 0.6, language=language)
    assert f"<summary>{said}</summary>" in content


def test_every_phrase_is_in_both_languages():
    for phrase in TranslationTab.all_phrases().values():
        assert isinstance(phrase, Phrase)
        assert phrase.english
        assert re.search("[\u4e00-\u9fff]", phrase.chinese)


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "\"'", "${1+1} {{value}} `x` \\"])
def test_text_is_escaped_for_html_and_for_templates(text):
    escaped = escape(text)
    assert html.unescape(escaped) == text
    assert not set(escaped) & set("<>\"'${}`\\")
