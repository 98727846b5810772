"""Target text in, the same text out, over all of Unicode that is assigned."""

import sys
import unicodedata
from functools import cache

import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_jax.data import UNK
from transformer_jax.data.tokenizers import train_pair

# Unassigned code points, noncharacters among them, and surrogates, which are no characters, are left out. So is what
# cannot occur in a line.
UNASSIGNED = ("Cn", "Cs")
SAMPLE = "你好，世界！ x² e\u200cf\u00a0g\u3000h  i\tj ▁ ▅ ﬁ Ⅷ é e\u0301 हिन्दी ❤️👨‍👩‍👧 \u2028\u00ad ½ <s> </s> "
TEXTS = st.text(st.characters(exclude_categories=UNASSIGNED, exclude_characters="\n"), max_size=30)
KNOWN = st.text(st.sampled_from(sorted(set(SAMPLE))), max_size=30)
DEFAULT, LONG = 200, 100_000
KEPT = pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])


@cache
def target_tokenizer(kind):
    """Of a joint vocabulary whose source is normalized, as training makes it by default."""
    pair = train_pair(
        kind, ["Hello, world 2!"], [SAMPLE] * 2, 600, True, source_normalization="nmt_nfkc", byte_fallback=True
    )
    return pair.target


@cache
def known_characters():
    """A vocabulary of all assigned characters."""
    alphabet = [chr(code) for code in range(sys.maxunicode + 1)]
    alphabet = [char for char in alphabet if unicodedata.category(char) not in UNASSIGNED and char != "\n"]
    return train_pair("char", ["".join(alphabet)], [], len(alphabet) + 4, True).target


def check_round_trip(kind, text):
    tokenizer = known_characters() if kind == "char" else target_tokenizer(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@KEPT
@given(text=TEXTS)
@settings(max_examples=DEFAULT, deadline=None)
def test_any_text_comes_back(kind, text):
    check_round_trip(kind, text)


@pytest.mark.soak
@KEPT
@given(text=TEXTS)
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_comes_back_in_the_long_run(kind, text):
    check_round_trip(kind, text)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=KNOWN)
@settings(max_examples=DEFAULT, deadline=None)
def test_without_bytes_what_the_vocabulary_knows_comes_back(kind, text):
    tokenizer = plain_tokenizer(kind)
    assert UNK not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@cache
def plain_tokenizer(kind):
    return train_pair(kind, ["Hello"], [SAMPLE, " ".join(SAMPLE)], 400, True, source_normalization="nmt_nfkc").target


def check_words(text):
    words = train_pair("word", [text], [text + " x"], 100, True).target
    pieces = [words.piece(token) for token in words.encode(text)]
    assert regex.sub(r"\s", "", "".join(pieces)) == regex.sub(r"\s", "", text), "white space alone is lost"
    if not regex.search(r"\s", text):
        assert set(lengths(pieces)) <= set(lengths(regex.findall(r"\X", text))), "no grapheme cluster is torn"


def lengths(parts):
    total = 0
    for part in parts:
        yield (total := total + len(part))


@given(text=TEXTS)
@settings(max_examples=DEFAULT, deadline=None)
def test_words_lose_white_space_alone_and_tear_no_cluster(text):
    check_words(text)


@pytest.mark.soak
@given(text=TEXTS)
@settings(max_examples=LONG, deadline=None, suppress_health_check=list(HealthCheck))
def test_words_lose_white_space_alone_and_tear_no_cluster_in_the_long_run(text):
    check_words(text)
