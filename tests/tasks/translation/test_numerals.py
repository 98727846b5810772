import random
from collections import Counter

import pytest
from num2words import num2words

from transformer_jax.system import UserError
from transformer_jax.tasks.translation.sources import LANGUAGES, Numerals, number_words, split_of


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_equal_num2words(language):
    numbers = [*range(1, 1_300, 7), *range(1000, 1_000_000, 1000)]
    numbers += [thousands + rest for thousands in (1000, 2000, 21_000, 80_000, 100_000, 999_000) for rest in range(130)]
    numbers += random.Random(0).sample(range(1_000_000), 1_500)
    wrong = [n for n in [0, *numbers, 999_999] if number_words(n, language) != num2words(n, lang=language)]
    assert not wrong


def test_the_example():
    assert number_words(721, "de") == "siebenhunderteinundzwanzig"
    assert number_words(721, "en") == "seven hundred and twenty-one"


def test_splits_are_disjoint():
    train = Numerals("de", "en", "train")
    seen = {train.number(i) for i in range(8_000)}
    held_out = {
        split: [Numerals("de", "en", split).number(i) for i in range(1_000)] for split in ("validation", "test")
    }
    for split, numbers in held_out.items():
        assert len(Numerals("de", "en", split)) == len(set(numbers)) == 1_000
        assert not seen & set(numbers)
        assert {split_of(number) for number in numbers} == {split}
    assert not set(held_out["validation"]) & set(held_out["test"])
    assert {split_of(number) for number in seen} == {"train"}
    assert set(range(100)) <= seen, "the parts of long numbers are all learned"
    assert set(Counter(len(str(n)) for n in held_out["test"])) == {3, 4, 5, 6}


def test_all_lengths_are_equally_likely():
    train = Numerals("de", "en", "train")
    digits = Counter(len(str(train.number(i))) for i in range(6_000))
    assert set(digits) == set(range(1, 7))
    assert all(800 < count < 1_200 for count in digits.values())


def test_items_are_a_function_of_seed_and_index():
    first, again, other = (Numerals("de", "en", "train", seed) for seed in (0, 0, 1))
    assert first[500:520] == [again[i] for i in range(500, 520)]
    assert first[500:520] != other[500:520]
    assert Numerals("de", "en", "test", 0)[:] == Numerals("de", "en", "test", 1)[:]
    assert first[-1] == first[len(first) - 1]
    with pytest.raises(IndexError):
        first[len(first)]
    number = first.number(7)
    assert first[7] == (number_words(number, "de"), number_words(number, "en"))


def test_mistakes_are_told():
    with pytest.raises(UserError, match=r"config\.data\.target_language is 'tlh'.*de, en"):
        Numerals("de", "tlh", "train")
    with pytest.raises(UserError, match="no split 'dev', only train, validation, test"):
        Numerals("de", "en", "dev")
