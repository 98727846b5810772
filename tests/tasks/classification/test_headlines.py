from collections import Counter

import pytest

from transformer_jax.system import UserError
from transformer_jax.tasks.classification.headlines import CLASSES, SPLITS, Headlines, split_of, words


@pytest.fixture(scope="module")
def headlines():
    return {split: Headlines(split)[:6_000] for split in SPLITS}


def words_in(text):
    return {word.strip(":,").lower() for word in text.split()}


def test_sizes_and_classes(headlines):
    assert [len(Headlines(split)) for split in SPLITS] == [20_000, 1_000, 1_000]
    assert CLASSES == ("markets", "science", "sports", "weather")
    for records in headlines.values():
        shares = Counter(label for _, label in records)
        assert set(shares) == set(CLASSES)
        assert all(0.2 < count / len(records) < 0.3 for count in shares.values())


def test_splits_are_disjoint(headlines):
    texts = {split: {text for text, _ in records} for split, records in headlines.items()}
    assert len(texts["validation"]) == len(texts["test"]) == 1_000
    assert len(texts["train"]) > 5_000
    assert not texts["train"] & texts["validation"] | texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]
    assert all({split_of(text) for text in texts[split]} == {split} for split in SPLITS)


def test_no_headline_has_two_labels(headlines):
    records = {record for split in SPLITS for record in headlines[split]}
    assert len(records) == len({text.lower() for text, _ in records})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_headlines_have_words_that_training_never_has(headlines, split):
    seen = set().union(*(words_in(text) for text, _ in headlines["train"]))
    new = [text for text, _ in headlines[split] if words_in(text) - seen]
    assert 0.4 < len(new) / 1_000 < 0.7
    unseen = {word for topic in CLASSES for slot in ("theme", "body", "role") for word in words(topic, slot)[1]}
    train = "\n".join(text.lower() for text, _ in headlines["train"])
    assert not [word for word in unseen if word.lower() in train]
    held_out = "\n".join(text.lower() for text, _ in headlines[split])
    assert sum(word.lower() in held_out for word in unseen) > 0.9 * len(unseen)


@pytest.mark.parametrize("slot", ["place", "person", "code"])
def test_names_are_of_all_topics(slot):
    seen, unseen = words(CLASSES[0], slot)
    assert all(words(topic, slot) == (seen, unseen) for topic in CLASSES)
    assert 5 <= len(unseen) < len(seen)
    assert not set(seen) & set(unseen)


@pytest.mark.parametrize("word", ["record", "star", "wave", "front", "pressure", "fall"])
def test_one_word_rarely_decides(headlines, word):
    topics = Counter(label for text, label in headlines["train"] if word in words_in(text))
    assert len(topics) >= 2
    assert max(topics.values()) < 0.75 * topics.total()


def test_items_are_a_function_of_the_index(headlines):
    train = Headlines("train")
    assert train[500:520] == headlines["train"][500:520] == [train[i] for i in range(500, 520)]
    assert train[-1] == train[19_999]
    with pytest.raises(IndexError):
        train[20_000]
    # The same on every machine and for every version of Python.
    assert train[0] == ("Analysts see interest rate rise by ten percent", "markets")


def test_every_pattern_is_filled(headlines):
    for text, _ in (record for records in headlines.values() for record in records):
        assert not set("{}") & set(text)
        assert text[0].isupper()
        assert text == " ".join(text.split())


def test_mistakes_are_told():
    with pytest.raises(UserError, match="no split 'dev', only train, validation, test"):
        Headlines("dev")
