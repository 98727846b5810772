import random

import pytest

from transformer_jax.data.readers import apart_from, cut, is_held_out
from transformer_jax.system.errors import UserError

TEXTS = [f"text {i}" for i in range(20_000)]


def test_the_same_on_every_machine():
    # `printf text | b2sum -l 64` prints d7f35fa228381a1c, which is 0.84356 of 2**64.
    assert is_held_out("text", 84.356)
    assert not is_held_out("text", 84.355)


@pytest.mark.parametrize("percent", [0.3, 5.0, 50.0])
def test_the_share_is_as_asked(percent):
    count = sum(is_held_out(text, percent) for text in TEXTS)
    expected = len(TEXTS) * percent / 100
    assert abs(count - expected) < 4 * expected**0.5


def test_bounds_and_growth():
    assert not any(is_held_out(text, 0.0) for text in TEXTS)
    assert all(is_held_out(text, 100.0) for text in TEXTS)
    assert all(is_held_out(text, 10.0) for text in TEXTS if is_held_out(text, 5.0))


def test_odd_texts():
    assert [is_held_out(text, 100.0) for text in ("", "花", "\ud800")] == [True] * 3


def test_a_cut_without_either_side_is_told():
    with pytest.raises(UserError, match=r"validation_percent is 1e-09, which holds out none of 20,000 records; raise"):
        cut(TEXTS, str, 1e-9)
    with pytest.raises(UserError, match=r"validation_percent is 99\.9999, which holds out all of 5 records; lower it"):
        cut(TEXTS[:5], str, 99.9999)
    assert cut([], str, 5.0) == ([], [])


def test_cut_keeps_equal_keys_together_and_the_order():
    rng = random.Random(0)
    records = [(f"key {rng.randrange(200)}", i) for i in range(2_000)]
    kept, held_out = cut(records, lambda record: record[0], 20.0)
    assert sorted(kept + held_out, key=lambda record: record[1]) == records
    assert {key for key, _ in kept}.isdisjoint(key for key, _ in held_out)
    assert all(part == sorted(part, key=lambda record: record[1]) for part in (kept, held_out))
    assert 20 < len({key for key, _ in held_out}) < 65


def test_further_records_keep_apart_from_the_held_out_ones():
    held_out = [("a", 1), ("b", 2)]
    records = [("b", 3), ("c", 4), ("a", 5), ("d", 6), ("c", 7)]
    assert apart_from(held_out, records, lambda record: record[0]) == [("c", 4), ("d", 6), ("c", 7)]
