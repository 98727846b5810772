import math

import pytest

from transformer_jax.system import UserError
from transformer_jax.tasks.couplets.rules import NAMES, Rules

INF = math.inf


def test_names_stand_in_the_order_in_which_rules_are_told():
    assert NAMES == ("length", "punctuation", "repetition", "distinct", "tones")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("", (INF, INF, INF, INF, 1.0)),
        ("length,punctuation,repetition,distinct,tones=2", (INF, INF, INF, INF, 2.0)),
        ("tones", (INF, INF, INF, INF, INF)),
        (" distinct = 0.5 , repetition=off", (INF, INF, 0.0, 0.5, 1.0)),
        ("none", (0.0,) * 5),
        ("all", (INF,) * 5),
        ("none,length", (INF, 0.0, 0.0, 0.0, 0.0)),
        ("all,tones=hard,length=0", (0.0, INF, INF, INF, INF)),
        ("tones=inf", (INF,) * 5),
    ],
)
def test_parse(text, weights):
    rules = Rules.parse(text)
    assert rules == Rules(*weights)
    assert Rules.parse(str(rules)) == rules
    assert hash(rules) == hash(Rules(*weights))
    assert [rules.is_hard(name) for name in NAMES] == [weight == INF for weight in weights]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tone", "^'tone' is not a rule; known: length, punctuation, repetition, distinct, tones, "),
        ("length,none", "^'none' is not a rule"),
        ("tones=", "^tones= is not a weight; write a number of at least 0, hard or off"),
        ("tones=much", "^tones=much is not a weight"),
        ("tones=-1", "^The weight of the rule tones is -1.0, but must be hard, or from 0 to 1000"),
        ("distinct=nan", "^The weight of the rule distinct is nan"),
        ("tones,tones=off", "^The rule tones is named twice"),
    ],
)
def test_what_cannot_be_read_is_told(text, message):
    with pytest.raises(UserError, match=message):
        Rules.parse(text)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weight", [-0.1, math.nan, -math.inf, 1000.1])
def test_weights_out_of_range_name_the_rule(name, weight):
    with pytest.raises(UserError, match=rf"the rule {name} is .*, but must be hard, or from 0 to 1000"):
        Rules(**{name: weight})
