"""The tab of couplet models: lower lines, the tables of rules, and the switches."""

import html
import re

import pytest

from tests.tasks.toys import write_couplet_writer
from transformer_jax.tasks.couplets.rules import NAMES, Rules, judge
from transformer_jax.tasks.couplets.tab import CoupletTab
from transformer_jax.tasks.model_folder import load

UPPER = "春风，山水"
ALL_ON = [True] * len(NAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_couplet_writer(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def tab(model):
    return CoupletTab({"toy": model})


def lines(content):
    return [html.unescape(line) for line in re.findall(r'<span class="text" lang="zh">(.*?)</span>', content)]


def cells(content, rule):
    """The cells of a rule in each table."""
    rows = re.findall(rf'<tr class="rule {rule}">.*?</th>(.*?)<td class="remark">', content)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_lines_with_a_table_of_rules_by_place(tab, model):
    content, message = tab.respond("toy", " 春风， 山水", 3, *ALL_ON, language="en")
    [expected] = model.search([UPPER], n_best=3, beam_size=3)
    assert message == ""
    assert lines(content) == [reply.text for reply in expected]
    for place, reply in enumerate(expected):
        verdict = judge(UPPER, reply.text)
        for name in NAMES:
            marked = [at for at, cell in enumerate(cells(content, name)[place]) if cell == "×"]
            assert tuple(marked) == verdict.broken[name]
    assert content.count('<button type="button" class="copy"') == 3


def test_a_switch_drops_a_rule(tab, model):
    switches = [name != "distinct" and name != "length" for name in NAMES]
    content, _ = tab.respond("toy", UPPER, 2, *switches, language="en")
    rules = Rules.parse("length=off,distinct=off")
    [expected] = model.search([UPPER], n_best=2, beam_size=2, rules=rules)
    assert lines(content) == [reply.text for reply in expected]
    [with_rules] = model.search([UPPER], n_best=2, beam_size=2)
    assert lines(content) != [reply.text for reply in with_rules], "or the rules change nothing here"


def test_a_rule_that_the_model_drops_is_hard_when_it_is_on(tmp_path):
    model = load(write_couplet_writer(tmp_path / "model", rules="none"))
    content, _ = CoupletTab({"toy": model}).respond("toy", UPPER, 1, *ALL_ON, language="en")
    [[expected]] = model.search([UPPER], n_best=1, rules="all")
    assert lines(content) == [expected.text]


def test_what_is_odd_about_the_upper_line_is_said(tab):
    content, _ = tab.respond("toy", "天龟龘花", 1, *ALL_ON, language="en")
    assert "knows only 50%" in content
    assert "ends level" in content
    assert "上联末字为平声" in tab.respond("toy", "天花", 1, *ALL_ON, language="zh").content


def test_the_number_of_rules_kept_is_said(tab):
    content, _ = tab.respond("toy", "天地", 1, *ALL_ON, language="zh")
    [line] = lines(content)
    assert f"符合 {len(judge('天地', line).kept)} 条规则（共 5 条）" in content


def test_what_cannot_be_done_is_one_sentence(tab):
    content, message = tab.respond("toy", "春" * 2000, 1, *ALL_ON, language="en")
    assert content == ""
    assert "The text has 2,001 tokens, but the limit is 1,024; split it." in html.unescape(message)
