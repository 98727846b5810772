"""The tab of classifiers: probabilities as bars, and words marked in the text."""

import html
import re

import pytest

from tests.tasks.toys import CLASSES, write_classifier
from transformer_jax.tasks.classification.tab import ClassificationTab
from transformer_jax.tasks.model_folder import load

TEXT = "abc dad, <be> ABE\ncab"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_classifier(tmp_path_factory.mktemp("model") / "model", max_length=24))


@pytest.fixture(scope="module")
def tab(model):
    return ClassificationTab({"toy": model})


def test_probabilities_are_bars_the_largest_first(tab, model):
    content, message = tab.respond("toy", TEXT, False, language="en")
    [expected] = model.classify([TEXT])
    assert message == ""
    names = re.findall(r'<td class="name">(.*?)</td>', content)
    assert names == sorted(CLASSES, key=lambda name: -expected.probabilities[name])
    widths = [float(width) for width in re.findall(r"width: ([\d.]+)%", content)]
    assert widths == pytest.approx([100 * expected.probabilities[name] for name in names], abs=0.006)
    assert "marked" not in content


def test_words_are_marked_in_the_text(tab, model):
    content, _ = tab.respond("toy", TEXT, True, language="en")
    [expected] = model.classify([TEXT], explain=True)
    [marked] = re.findall(r'<p class="marked">(.*?)</p>', content, re.DOTALL)
    assert html.unescape(re.sub("<.*?>", "", marked)) == TEXT
    effects = {word.text: word.effect for word in expected.words}
    largest = max(map(abs, effects.values()))
    found = re.findall(r'<mark class="(\w+)" style="--share: ([\d.]+)" title="(.*?)">(.*?)</mark>', marked)
    assert {word for *_, word in found} == {word for word in effects if abs(effects[word]) >= 0.05 * largest}
    for kind, share, title, word in found:
        assert kind == ("for" if effects[word] >= 0 else "against")
        assert float(share) == pytest.approx(abs(effects[word]) / largest, abs=0.006)
        assert title == f"{effects[word]:+.2f}"


def test_a_text_that_is_cut_says_so(tab):
    assert "first 24 tokens" in tab.respond("toy", "abc " * 30, False, language="en").content
    assert "前 24 个词元" in tab.respond("toy", "abc " * 30, False, language="zh").content
    assert "first 24" not in tab.respond("toy", "abc", False, language="en").content


def test_a_text_without_words_has_no_marks(tab):
    content, message = tab.respond("toy", "?!", True, language="en")
    assert message == ""
    assert "marked" not in content
