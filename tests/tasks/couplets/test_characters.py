"""Characters of couplets are those that a reader sees: grapheme clusters after NFC, and nothing invisible."""

import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.toys import CHARACTERS, MARKS, tiny_config, tiny_params, tiny_tokenizer
from transformer_jax.data.readers import is_blank
from transformer_jax.data.tokenizers import CharTokenizer, TokenizerPair
from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.enforce import vocabulary_of
from transformer_jax.tasks.couplets.generate import CoupletWriter, CoupletWriterSettings
from transformer_jax.tasks.couplets.rules import (
    NAMES,
    Rules,
    characters,
    couplet_scores,
    distinct,
    explain,
    judge,
    places_of,
    plain,
    rule_shares,
)
from transformer_jax.tasks.couplets.sources import leave_out_unfit, seen_uppers, without_spaces

HEART, FAMILY, CHINA, ENGLAND = "❤️", "👨‍👩‍👧", "🇨🇳", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
VARIANT = "葛\U000e0100"
INVISIBLE = (
    "\u200b\u200c\u200d\u00ad\ufeff\u200e\u202e\u2060\x1b\x00\ufe0f\U000e0100\U000e0041\u034f\u3164\u115f\u2800\u180e"
)
JOINING = "\u0301\u0302\u20e3\ufe0f\u200d\U0001f1e8\U0001f1f3\u1100\u1161\u11a8\U0001f3fb\u0e33\u0d4e\u0600"
"""Tokens that become one character with a neighbour."""

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(INVISIBLE + JOINING + "春👨👩❤e \t"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"春江{HEART}明月降", ["春", "江", HEART, "明", "月", "降"]),
        (f"{FAMILY}{CHINA}{ENGLAND}1️⃣👍🏻", [FAMILY, CHINA, ENGLAND, "1️⃣", "👍🏻"]),
        (f"{VARIANT}城", [VARIANT, "城"]),
        ("e\u0301x\u0302", ["é", "x\u0302"]),
        ("\u1112\u1161\u11ab", ["한"]),
        ("春\u200b江\u00ad月\ufeff\u200e\u202e\x1b\u2060", ["春", "江", "月"]),
        ("\u200d\ufe0f春", ["春"]),
        ("春 江\u3000", ["春", " ", "江", "\u3000"]),
        ("", []),
    ],
)
def test_characters(line, expected):
    assert characters(line) == expected


def test_what_is_invisible_changes_no_character():
    assert plain(f"{VARIANT}\u200b{HEART}e\u200d\u0301") == "葛❤é"
    assert places_of(f"春{HEART}") == ["春", "❤"]
    for sign in INVISIBLE:
        assert without_spaces(f"春{sign}") in ("春", f"春{sign}")
        assert places_of(f"春{sign}江") == ["春", "江"], f"U+{ord(sign):04X}"
        assert without_spaces(sign) == ""


@given(ANY_TEXT)
@settings(max_examples=300, deadline=None)
def test_a_line_read_twice_is_read_the_same(text):
    line = without_spaces(text)
    assert without_spaces(line) == line == "".join(characters(line))
    assert unicodedata.is_normalized("NFC", line)
    assert is_blank(text) == (line == "")
    assert all(places_of(line))


def test_rules_count_characters():
    verdict = judge(f"春江{HEART}明月降", f"秋海{HEART}暗花升")
    assert {"length", "punctuation", "repetition", "distinct"} <= set(verdict.kept)
    assert judge("春江明月降", "秋海\u200b暗花\u00ad升").keeps("length")
    assert judge(f"春江{HEART}明", "秋海暗花").broken["punctuation"] == (2,), "one place, not two"
    assert judge(f"{VARIANT}城", "葛洲").broken["distinct"] == (0,), "a variant is the same character"
    assert judge("é春", "x\u0302e\u0301").broken["distinct"] == (1,)
    assert rule_shares([f"春江{FAMILY}"], [f"秋海{FAMILY}"])["length"] == 1
    assert rule_shares(["春江"], ["秋\u200d海\u200b"])["length"] == 1


def test_scores_do_not_see_what_is_invisible():
    assert couplet_scores(["秋\u200b海暗花"], ["秋海暗花\ufeff"])["exact_match"] == 1
    assert couplet_scores(["秋海e\u0301花"], ["秋海é花"])["bleu"] == pytest.approx(100)
    assert distinct([f"{FAMILY}春", "春"], 1) == 2 / 3


def test_a_table_has_a_column_for_each_character():
    table = explain(f"春{HEART}降", f"秋{HEART}升").splitlines()
    assert table[4].split() == ["length", "·", "·", "·", "kept"]


def test_couplets_to_learn_from_are_as_long_as_they_look():
    couplets = [(f"春{HEART}", "秋花"), ("春\u200b江", "秋海"), ("\u200d\u00ad", "秋"), ("春江", f"秋\u200b{CHINA}海")]
    fit = leave_out_unfit(couplets)
    assert fit.couplets == [(f"春{HEART}", "秋花"), ("春江", "秋海")]
    assert (fit.blank, fit.unequal) == (1, 1)
    assert leave_out_unfit([(f"{VARIANT}城", "秋海")], ["葛城"]).blocked == 1
    assert seen_uppers(["葛城", "春"], [(f"{VARIANT}城", "秋海")]) == [True, False]


def test_tokens_that_join_their_neighbours_are_not_in_the_tables_of_the_rules():
    tokenizer = CharTokenizer(["<pad>", "<s>", "</s>", "<unk>", *JOINING, *"\u200b\ufeff \uf900", *"春❤，"])
    vocabulary = vocabulary_of(tokenizer)
    written = (vocabulary.tones > 0) | vocabulary.marks
    assert [tokenizer.piece(token) for token in range(tokenizer.vocab_size) if written[token]] == ["春", "❤", "，"]


@pytest.fixture(scope="module")
def model():
    """Its vocabulary has everything that could spoil the count."""
    tokenizer = tiny_tokenizer(CHARACTERS + MARKS + JOINING + "\u200b\ufeff👨👩❤")
    config = tiny_config(tokenizer)
    return CoupletWriter(config, tiny_params(config), TokenizerPair(*[tokenizer.source] * 2, joint=True), SETTINGS)


SETTINGS = CoupletWriterSettings()

UPPERS = [
    f"春江{HEART}明月降",
    f"{FAMILY}{CHINA}春{ENGLAND}",
    "山\u200b山\u00ad水\ufeff水，e\u0301x\u0302",
    f"{VARIANT}葛\u200d城",
    "\u1112\u1161\u11ab春\u200e",
    "\u0301天",
    "1️⃣👍🏻天，",
    "❤春❤️春",
]


def clusters(line):
    """Counted without the package."""
    return [each for each in regex.findall(r"\X", unicodedata.normalize("NFC", line)) if not is_blank(each)]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "n_best": 2}, {"rules": "none,length"}], ids=str)
def test_answers_have_as_many_characters_as_upper_lines(model, options):
    uppers = [*UPPERS, *("".join(UPPERS[i : i + 3]) for i in range(5))]
    for upper, replies in zip(uppers, model.search(uppers, **options), strict=True):
        for reply in replies if isinstance(replies, list) else [replies]:
            assert len(clusters(reply.text)) == len(places_of(without_spaces(upper))), (upper, reply.text)
            if "rules" not in options:
                hard = {name for name in NAMES if Rules().is_hard(name)} - set(reply.gave_up)
                assert hard <= set(judge(upper, reply.text).kept), (upper, reply.text)


def test_what_is_invisible_changes_no_answer(model):
    assert model.reply(["春\u200b江\u00ad，\x1b月\ufeff", "e\u0301春"]) == model.reply(["春江，月", "é春"])
    assert model.known_share(f"春\u200b{HEART}鬱\ufeff") == pytest.approx(2 / 3)
    for blank in ("\u200d", "\u00ad\x1b", "\ufeff\u2060 \u3164"):
        with pytest.raises(UserError, match=r"^Line 1 is blank"):
            model.reply([blank])
