from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.data import EOS
from transformer_jax.data.tokenizers import CharTokenizer, WordTokenizer
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.generate import write
from transformer_jax.tasks.couplets.rules import NAMES, Rules, judge

CHARACTERS = (
    "天花春风山水日月云雨江海松竹梅兰东西南北一二三四五六七八九十大小长短高低来去有无前后古今红绿青白黑黄金玉石铁"
)
TOKENIZER = CharTokenizer(["<pad>", "<s>", "</s>", "<unk>", *CHARACTERS, *"，、；"])
RARE = "龘𠀀鬱彁A7π"
GREEDY = SearchOptions(beam_size=1)
BEAM = SearchOptions(beam_size=3, n_best=3)
SAMPLES = SearchOptions(temperature=2.0, n_best=3, seed=1)
HARD = [name for name in NAMES if Rules().is_hard(name)]


@pytest.fixture(scope="module")
def writer():
    """A model with weights large enough to be decided about its nonsense."""
    size = TOKENIZER.vocab_size
    config = ModelConfig(
        d_model=8,
        num_heads=2,
        d_ff=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=size,
        target_vocab_size=size,
    )
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(3)))
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    generators = {size: Generator(graphdef, batch_size=size) for size in (1, 1024)}

    def reply(uppers, options=GREEDY, rules=None, *, batch_size=1024, tokenizer=TOKENIZER):
        return write(generators[batch_size], params, tokenizer, uppers, options, rules or Rules())

    reply.generator, reply.params = generators[1024], params
    return reply


def random_uppers(count, longest=34, seed=0):
    """Characters from a small choice, so that they repeat, rare ones, and marks within and beyond the vocabulary."""
    rng = np.random.default_rng(seed)
    uppers = []
    for _ in range(count):
        choice = rng.choice([*CHARACTERS, *RARE], rng.integers(1, 30))
        line = rng.choice(choice, rng.integers(1, longest + 1))
        marks = rng.random(len(line)) < rng.choice([0.0, 0.15])
        uppers.append("".join(np.where(marks, rng.choice([*"，、；！… 😀\t"], len(line)), line)))
    return uppers


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_every_line_keeps_the_hard_rules(writer, count):
    uppers = random_uppers(count)
    replies = writer(uppers)
    assert [len(found) for found in replies] == [1] * len(uppers)
    for upper, [reply] in zip(uppers, replies, strict=True):
        assert set(HARD) <= set(judge(upper, reply.text).kept), (upper, reply)
        assert reply.gave_up == ()
    assert len({reply.text for [reply] in replies}) > 0.9 * count
    assert sum(any(character in upper for character in RARE) for upper in uppers) > 0.5 * count


@pytest.mark.parametrize("options", [BEAM, SAMPLES], ids=["beam", "sample"])
def test_tones_may_be_hard_too_and_what_is_given_up_is_told(writer, options):
    """More different characters than the vocabulary has others leave none to answer with."""
    uppers = [*random_uppers(60, longest=14, seed=1), CHARACTERS[:30], CHARACTERS[20:50]]
    rules = Rules.parse("all")
    replies = writer(uppers, options, rules)
    for upper, found in zip(uppers, replies, strict=True):
        assert 1 <= len(found) <= 3
        for reply in found:
            assert set(NAMES) - set(reply.gave_up) <= set(judge(upper, reply.text).kept), (upper, reply)
    gave_up = {found[0].gave_up for found in replies}
    assert () in gave_up
    assert any(gave_up)
    if options is BEAM:
        alone = [writer([upper], options, rules, batch_size=1)[0] for upper in uppers[:2]]
        assert [[r.text for r in found] for found in alone] == [[r.text for r in found] for found in replies[:2]]


def test_weighted_tones_are_kept_more_often(writer):
    uppers = random_uppers(60, longest=14, seed=2)
    broken = [
        sum(len(judge(upper, found[0].text).broken["tones"]) for upper, found in zip(uppers, replies, strict=True))
        for replies in (writer(uppers, BEAM, Rules(tones=weight)) for weight in (0.0, 1.0, 20.0))
    ]
    assert broken[0] > broken[1] > broken[2]


def test_without_rules_lines_are_those_of_the_model(writer):
    uppers = random_uppers(20, longest=14, seed=3)
    sources = [[*TOKENIZER.encode(upper), EOS] for upper in uppers]
    options = replace(BEAM, max_extra_tokens=3)
    plain = writer.generator.generate(writer.params, sources, options)
    replies = writer(uppers, options, Rules.parse("none"))
    assert [[tuple(reply) for reply in found] for found in replies] == [
        [(TOKENIZER.decode(h.tokens), h.score, h.log_prob, ()) for h in found] for found in plain
    ]
    assert any(not judge(upper, found[0].text).keeps("length") for upper, found in zip(uppers, replies, strict=True))


@pytest.mark.parametrize("limit", [{"max_length": 2}, {"min_length": 9}])
def test_the_length_rule_goes_before_options(writer, limit):
    options = SearchOptions(beam_size=1, no_repeat_ngram=1, max_extra_tokens=50, **limit)
    [[reply]] = writer(["天天花花"], options)
    assert len(reply.text) == 4
    assert judge("天天花花", reply.text).keeps("repetition")


def test_bad_and_odd_lines(writer):
    uppers = ["", "，", "天 花", "hello", "龘" * 14, "😀！"]
    texts = [reply.text for [reply] in writer(uppers)]
    assert [len(text) for text in texts] == [len(upper) for upper in uppers]
    assert texts[:2] == ["", "，"]
    assert texts[2][1] == " "
    assert len(set(texts[4])) == 1
    assert texts[5] == "😀！"
    assert writer([]) == []


def test_a_line_with_more_characters_than_the_vocabulary_has(writer):
    upper = "".join(chr(0x4E00 + 7 * i) for i in range(200))
    [[reply]] = writer([upper])
    assert len(reply.text) == 200
    assert reply.gave_up == ("repetition",), "no rule more than must be"
    assert set(HARD) - {"repetition"} <= set(judge(upper, reply.text).kept)


def test_tokens_must_be_characters(writer):
    with pytest.raises(UserError, match=r'need characters as tokens; train with config.tokenizer.kind="char"'):
        writer(["天"], tokenizer=WordTokenizer(["<pad>", "<s>", "</s>", "<unk>", "天"]))
