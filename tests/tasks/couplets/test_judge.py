import pytest

from transformer_jax.tasks.couplets.rules import NAMES, Tone, asked_tones, broken_by_place, first_places, is_mark, judge

TREES = "晚风摇树树还挺"


def broken(upper, lower):
    return {name: places for name, places in judge(upper, lower).broken.items() if places}


@pytest.mark.parametrize(
    ("upper", "lower"),
    [
        (TREES, "晨露润花花更红"),
        ("风声、雨声、读书声，声声入耳", "家事、国事、天下事，事事关心"),
        ("上海自来水来自海上", "山西运煤车煤运西山"),
        ("春", "秋"),
        ("，", "，"),
        ("", ""),
    ],
)
def test_what_a_good_line_keeps(upper, lower):
    assert {"length", "punctuation", "repetition", "distinct"} <= set(judge(upper, lower).kept)


def test_a_regular_couplet_keeps_all_rules():
    verdict = judge("白日依山尽", "黄河入海流")
    assert verdict.kept == NAMES
    assert not verdict.upper_ends_level


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [
        ("春花", "秋月山", {"length": (2,)}),
        ("春花开", "秋", {"length": (1, 2)}),
        # A mark that is missing, another, and one too many.
        ("春，花。", "秋月，。", {"punctuation": (1, 2)}),
        ("春，花", "秋。月", {"punctuation": (1,)}),
        ("春，", "秋", {"length": (1,), "punctuation": (1,)}),
        ("春", "秋，", {"length": (1,), "punctuation": (1,)}),
        # Equal where the upper line differs, and the reverse.
        (TREES, "晨露润花草更红", {"repetition": (4,)}),
        (TREES, "晨露润花花露红", {"repetition": (5,)}),
        ("一二三", "八八八", {"repetition": (1, 2)}),
        # Beyond the upper line nothing may repeat; a mark is passed over.
        ("一", "八八", {"length": (1,), "repetition": (1,)}),
        ("一，一", "八九八", {"punctuation": (1,)}),
        ("一一，一", "八八八八", {"punctuation": (2,), "repetition": (2, 3)}),
        ("晚风", "风来", {"distinct": (0,)}),
        ("晚风", "月月月风", {"length": (2, 3), "repetition": (1, 2), "distinct": (3,)}),
        # Rare characters count as what they are.
        ("龘龘𠀀", "花花花", {"repetition": (2,)}),
        ("龘𠀀", "龘花", {"distinct": (0,)}),
    ],
)
def test_where_rules_are_broken(upper, lower, expected):
    found = broken(upper, lower)
    found.pop("tones", None)
    assert found == expected


@pytest.mark.parametrize(
    ("upper", "asked"),
    [
        # Even places oppose, and the end is level.
        ("白日依山尽", " L OL"),
        # Positions restart after every mark; the end may be at an odd position.
        ("天，天天天，天月", "   O   L"),
        ("月月、月月月！", " L  LL "),
        # What can be read either way asks nothing, but at the end.
        ("天长月长", "   L"),
        # An upper line that ends level is opposed all the same.
        ("月天天", " OO"),
        ("AB", " L"),
        ("，", " "),
        ("", ""),
    ],
)
def test_asked_tones(upper, asked):
    letters = {Tone(0): " ", Tone.LEVEL: "L", Tone.OBLIQUE: "O"}
    assert "".join(letters[tones] for tones in asked_tones(upper)) == asked


def test_broken_tones():
    assert broken("白日依山尽", "黄月入花水") == {"tones": (1, 3, 4)}
    assert broken("白日依山尽", "黄长入行长") == {"repetition": (4,)}, "one reading in the right tone is enough"
    assert broken("白日依山尽", "黄A入BC") == {}, "what has no reading can't be wrong"
    assert broken("白日，依山尽", "黄河，入月") == {"length": (5,)}, "what is missing breaks no tone"


def test_an_upper_line_that_ends_level_is_told():
    verdict = judge("黄河入海流", "白日依山尽")
    assert verdict.upper_ends_level
    assert verdict.keeps("tones"), "it opposes"
    assert judge("黄河入海流", "白日依山天").broken["tones"] == (4,)
    assert judge("月天！", "花月！").upper_ends_level
    assert not judge("月长", "花月").upper_ends_level, "it may be read oblique"


def test_marks():
    assert all(map(is_mark, "，。、？！：；…-《》“”+￥😀 \u3000\t\u200b"))
    assert not any(map(is_mark, "花〇A1①π龘𠀀\ud800"))
    assert not is_mark("")


def test_classes():
    assert first_places("风声、雨声、") == [0, 1, 2, 3, 1, 5]


def test_broken_rules_by_place():
    uppers, lowers = ["天地", "春风，有雨", "天"], ["天山水", "秋月，无云", "天"]
    shares, couplets = broken_by_place(uppers, lowers)
    assert couplets.tolist() == [3, 2, 2, 1, 1]
    by_rule = dict(zip(NAMES, shares.tolist(), strict=True))
    assert by_rule["length"] == [0, 0, 1 / 2, 0, 0]
    assert by_rule["distinct"] == [2 / 3, 0, 0, 0, 0]
    for name, row in by_rule.items():
        verdicts = [judge(upper, lower).broken[name] for upper, lower in zip(uppers, lowers, strict=True)]
        assert row == [sum(place in each for each in verdicts) / couplets[place] for place in range(5)]
