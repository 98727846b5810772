import dataclasses

import numpy as np
import pytest

from tests.tasks.toys import CHARACTERS, MARKS, tiny_config, tiny_params, tiny_tokenizer, write_couplet_writer
from transformer_jax.data import EOS
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.generate import CoupletWriter
from transformer_jax.tasks.couplets.rules import NAMES, Rules, judge
from transformer_jax.tasks.model_folder import load

UPPERS = ["天", "春风有雨", "山山水水，来来去去", "东西南北；一二三", "hello", "龘龘鬱天！", "、"]
"""Repeated characters, marks and characters within and beyond the vocabulary, Latin text; one padded length."""
HARD = [name for name in NAMES if Rules().is_hard(name)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_couplet_writer(tmp_path_factory.mktemp("run") / "model"))


def with_settings(model, *, decoding=None, **settings):
    decoding = dataclasses.replace(model.settings.decoding, **(decoding or {}))
    changed = dataclasses.replace(model.settings, decoding=decoding, **settings)
    return CoupletWriter(model.model_config, model.params, model.tokenizer, changed)


def test_what_was_saved_writes_the_same(model):
    tokenizer = tiny_tokenizer(CHARACTERS + MARKS)
    config = tiny_config(tokenizer)
    before = CoupletWriter(config, tiny_params(config), tokenizer, model.settings)
    assert model.model_config == config
    assert Rules.parse(model.settings.rules) == Rules()
    assert model.search(UPPERS) == before.search(UPPERS)


def test_every_upper_line_gets_a_lower_line_that_keeps_the_hard_rules(model):
    lowers = model.reply(UPPERS)
    assert len(set(lowers)) == len(UPPERS)
    for upper, lower in zip(UPPERS, lowers, strict=True):
        assert set(HARD) <= set(judge(upper, lower).kept), (upper, lower)


def test_other_lines_do_not_matter(model):
    expected = model.reply(UPPERS)
    assert [model.reply([upper])[0] for upper in UPPERS[:3]] == expected[:3]
    assert model.reply(UPPERS[::-1], batch_size=1) == expected[::-1]
    assert model.reply([]) == []


def test_the_best_of_several_come_first_and_differ(model):
    found = model.reply(UPPERS[:4], n_best=2)
    assert found == model.search(UPPERS[:4], n_best=2)
    assert [replies[0].text for replies in found] == model.reply(UPPERS[:4])
    for replies in found:
        scores = [reply.score for reply in replies]
        assert len({reply.text for reply in replies}) == len(replies) == 2
        assert scores == sorted(scores, reverse=True)


def test_more_lines_than_the_beam_is_wide(model):
    assert [len(replies) for replies in model.search(UPPERS[1:2], n_best=5)] == [5]


def test_where_rules_allow_fewer_lines_there_are_fewer_but_one(model):
    assert [[reply.text for reply in replies] for replies in model.search(["，；"], n_best=5)] == [["，；"]]


def test_white_space_does_not_count(model):
    assert model.search([" 春风\t有\u3000雨\n"]) == model.search(["春风有雨"])
    assert model.known_share(" 春 龘 ") == model.known_share("春龘") == 0.5


def test_rules_are_objects_text_or_the_models_own(model):
    rules = Rules.parse("none,length,tones=3")
    expected = model.search(UPPERS, rules=rules)
    assert model.search(UPPERS, rules="none,length,tones=3") == expected
    assert with_settings(model, rules=str(rules)).search(UPPERS) == expected
    assert model.search(UPPERS, rules=model.settings.rules) == model.search(UPPERS)
    assert expected != model.search(UPPERS)
    with pytest.raises(UserError, match="'rhyme' is not a rule"):
        model.reply(UPPERS, rules="rhyme")


def test_without_rules_the_model_speaks_for_itself(model):
    plain = Generator(model.graphdef, batch_size=8)
    sources = [[*model.tokenizer.source.encode(upper), EOS] for upper in UPPERS]
    found = plain.generate(model.params, sources, SearchOptions(beam_size=2, max_extra_tokens=4))
    expected = [model.tokenizer.target.decode(hypotheses[0].tokens) for hypotheses in found]
    assert model.reply(UPPERS, rules="none", max_extra_tokens=4) == expected
    assert expected != model.reply(UPPERS)


def test_how_likely_a_line_is_has_nothing_to_do_with_rules(model):
    uppers = UPPERS[:3]
    lowers = model.reply(uppers, rules="all")
    scores = [score.log_prob for score in model.score(uppers, lowers)]
    unruly = with_settings(model, rules="none")
    assert [score.log_prob for score in unruly.score(uppers, lowers)] == scores
    for [reply], log_prob in zip(model.search(uppers, rules="all"), scores, strict=True):
        assert reply.log_prob == pytest.approx(log_prob, abs=1e-4)


def test_samples_keep_the_rules_and_follow_the_seed(model):
    draw = {"temperature": 2.0, "n_best": 3}
    first = model.search(UPPERS[1:3], seed=1, **draw)
    assert model.search(UPPERS[1:3], seed=1, **draw) == first
    assert model.search(UPPERS[1:3], seed=2, **draw) != first
    for upper, replies in zip(UPPERS[1:3], first, strict=True):
        assert all(set(HARD) <= set(judge(upper, reply.text).kept) for reply in replies)


def test_known_share(model):
    assert [model.known_share(upper) for upper in ("天地", "天龘", "hello", "春风，雨！")] == [1, 0.5, 0, 0.8]


def test_a_line_of_200_characters(model):
    rng = np.random.default_rng(0)
    uppers = ["".join(rng.choice([*CHARACTERS[:12], "，"], 200)), "".join(map(chr, range(0x4E00, 0x4E00 + 200)))]
    [possible], [impossible] = model.search(uppers, beam_size=1)
    assert possible.gave_up == ()
    assert set(HARD) <= set(judge(uppers[0], possible.text).kept)
    assert impossible.gave_up == ("repetition",)
    assert {"length", "distinct"} <= set(judge(uppers[1], impossible.text).kept)


@pytest.mark.parametrize("blank", ["", " \t", "\u3000"])
def test_a_blank_line_has_no_answer(model, blank):
    with pytest.raises(UserError, match=r"^Line 2 is blank; write an upper line"):
        model.reply(["天", blank])


def test_a_line_that_is_too_long_is_named(model):
    with pytest.raises(UserError, match=r"^Line 2 has 9 tokens, but the limit is 8; split it"):
        with_settings(model, max_source_length=8).reply(["天地", "天地花草春秋风雨"])


@pytest.mark.parametrize("uppers", ["天地", [b"a"], ["天", None], [3]])
def test_what_is_no_text_is_refused(model, uppers):
    with pytest.raises(TypeError, match="str"):
        model.reply(uppers)


@pytest.mark.parametrize(
    ("name", "value"), [("beam_size", 0), ("n_best", 0), ("batch_size", 0), ("temperature", -1.0), ("seed", -1)]
)
def test_options_out_of_range_are_named(model, name, value):
    with pytest.raises(UserError, match=f"^{name} is {value}, but must be"):
        model.reply(["天"], **{name: value})


def test_unknown_options_are_refused(model):
    with pytest.raises(TypeError, match="beams"):
        model.reply(["天"], beams=3)
