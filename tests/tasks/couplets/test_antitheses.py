from collections import Counter

import pytest
from pypinyin import Style, pinyin

from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.antitheses import LEXICON, SPLITS, antitheses, split_of, words

ALL = [antithesis for word_class in LEXICON for antithesis in words(word_class)]
COUPLETS = {split: antitheses(split) for split in SPLITS}


def tones(character):
    """Level (tones 1 and 2) and oblique (3 and 4), for all readings of a character."""
    [readings] = pinyin(character, heteronym=True, style=Style.TONE3, neutral_tone_with_five=True)
    return {"level" if reading[-1] in "12" else "oblique" for reading in readings}


def repetition(line):
    return [line.index(character) for character in line]


def test_each_character_stands_once_in_the_lexicon():
    assert len(ALL) >= 150
    assert all(len(first) == len(second) for first, second in ALL)
    assert {len(first) for first, _ in ALL} == {1, 2}
    counts = Counter("".join(first + second for first, second in ALL))
    assert set(counts.values()) == {1}
    assert "，" not in counts


@pytest.mark.parametrize("word_class", sorted(set(LEXICON) - {"M"}))
def test_the_tones_of_antitheses_are_opposite(word_class):
    for level, oblique in words(word_class):
        assert "level" in tones(level[-1]), level
        assert "oblique" in tones(oblique[-1]), oblique


def test_splits_are_as_said():
    assert {split: len(couplets) for split, couplets in COUPLETS.items()} == SPLITS
    uppers = [upper for couplets in COUPLETS.values() for upper, _ in couplets]
    assert len(set(uppers)) == sum(SPLITS.values())
    assert all(split_of(upper) == split for split, couplets in COUPLETS.items() for upper, _ in couplets)
    with pytest.raises(UserError, match="no split 'dev', only train, validation, test"):
        antitheses("dev")


def test_the_same_on_every_machine():
    assert COUPLETS["test"][0] == ("圆鱼干谷", "方鸟湿溪")
    assert COUPLETS["train"][-1] == ("雅弦胆里见", "俗管心边闻")


def test_every_character_has_one_answer():
    both_ways = [*ALL, *((second, first) for first, second in ALL), ("，", "，")]
    opposite = {a: b for first, second in both_ways for a, b in zip(first, second, strict=True)}
    for couplets in COUPLETS.values():
        assert all("".join(opposite[character] for character in upper) == lower for upper, lower in couplets)


def test_couplets_keep_the_rules():
    for upper, lower in [*COUPLETS["train"][:2_000], *COUPLETS["validation"], *COUPLETS["test"]]:
        assert len(upper) == len(lower)
        assert [c == "，" for c in upper] == [c == "，" for c in lower]
        assert repetition(upper) == repetition(lower)
        assert set(upper) & set(lower) <= {"，"}
        assert "oblique" in tones(upper[-1]), upper
        assert "level" in tones(lower[-1]), lower
        for clause, answer in zip(upper.split("，"), lower.split("，"), strict=True):
            assert all(len(tones(a) | tones(b)) == 2 for a, b in zip(clause[1::2], answer[1::2], strict=True)), upper


def test_all_patterns_and_words_are_seen_in_training():
    lines = {upper for upper, _ in COUPLETS["train"]}
    assert {len(line) for line in lines} == {4, 5, 7, 9, 11}
    assert sum("，" in line for line in lines) > 2_000
    assert sum(len(set(line)) < len(line) for line in lines) > 4_000
    counts = Counter("".join(lines))
    assert min(counts[character] for first, second in ALL for character in first + second) >= 50
