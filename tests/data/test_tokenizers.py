import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data import BOS, EOS, PAD, UNK
from transformer_jax.data.tokenizers import (
    KINDS,
    Tokenizer,
    pair_from_files,
    tokenizer_from_files,
    train_pair,
    train_tokenizer,
)
from transformer_jax.system import UserError

GERMAN = ["Zwei junge Männer stehen im Garten.", "Ein Hund läuft über die Straße!", "Die Frau liest ein Buch."] * 5
ENGLISH = ["Two young men stand in the garden.", "A dog runs across the street!", "The woman reads a book."] * 5
TEXTS = GERMAN + ENGLISH

_trained: dict[str, Tokenizer] = {}


def trained(kind: str) -> Tokenizer:
    if kind not in _trained:
        _trained[kind] = train_tokenizer(kind, TEXTS, 120)
    return _trained[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids(kind):
    tokenizer = trained(kind)
    assert [tokenizer.piece(i) for i in (PAD, BOS, EOS, UNK)] == ["<pad>", "<s>", "</s>", "<unk>"]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind):
    tokenizer = trained(kind)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids
        assert UNK not in ids
        assert max(ids) < tokenizer.vocab_size <= 120
        decoded = tokenizer.decode(ids)
        assert decoded.replace(" .", ".").replace(" !", "!") == text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_decode_stops_at_end_and_drops_the_rest(kind):
    tokenizer = trained(kind)
    first, second = tokenizer.encode(TEXTS[0]), tokenizer.encode(TEXTS[1])
    assert tokenizer.decode([BOS, *first, PAD, EOS, *second]) == tokenizer.decode(first)
    assert tokenizer.decode([]) == ""


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_can_be_encoded(kind, text):
    tokenizer = trained(kind)
    ids = tokenizer.encode(text)
    assert all(UNK <= i < tokenizer.vocab_size for i in ids), "no text encodes to special ids"
    assert isinstance(tokenizer.decode(ids), str)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_cannot_be_smuggled_in(kind):
    assert not {PAD, BOS, EOS} & set(trained(kind).encode("<pad> <s> </s>"))


@pytest.mark.parametrize("kind", KINDS)
def test_files_rebuild_the_tokenizer(kind):
    tokenizer = trained(kind)
    again = tokenizer_from_files({**tokenizer.files(), "config.json": b"{}"})
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert again.files() == tokenizer.files()


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind):
    assert train_tokenizer(kind, iter(TEXTS), 120).files() == trained(kind).files()


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_shrinks_with_the_text(kind, capfd):
    tokenizer = train_tokenizer(kind, TEXTS, 50_000)
    assert 4 < tokenizer.vocab_size < 1_000
    assert UNK not in tokenizer.encode(TEXTS[0])
    assert train_tokenizer(kind, ["a", ""], 100).vocab_size < 10
    assert "".join(capfd.readouterr()) == "", "training prints nothing"


def test_word_vocabulary_keeps_the_most_frequent():
    tokenizer = train_tokenizer("word", ["b a a c", "a b"], 6)
    assert [tokenizer.piece(i) for i in range(4, 6)] == ["a", "b"]
    assert tokenizer.encode("a b c, a") == [4, 5, UNK, UNK, 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("می‌خواهم", ["می‌خواهم"]),
        ("cafe\u0301!", ["cafe\u0301", "!"]),
        ("don't", ["don", "'", "t"]),
        ("สวัสดี", ["สวัสดี"]),
        ("ok ❤️👨‍👩‍👧🇫🇷👍🏽", ["ok", "❤️", "👨‍👩‍👧", "🇫🇷", "👍🏽"]),
        ("中文，x²", ["中文", "，", "x²"]),
    ],
)
def test_words_keep_their_marks_and_emoji_stay_whole(text, words):
    tokenizer = train_tokenizer("word", [text], 100)
    assert [tokenizer.piece(i) for i in tokenizer.encode(text)] == words


def test_a_word_vocabulary_of_release_0_1_0_splits_as_it_did():
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "ह", "ि", "न", "्", "द", "ी"]
    old = tokenizer_from_files({"words.txt": "".join(f"{piece}\n" for piece in pieces).encode()})
    assert old.encode("हिन्दी") == list(range(4, 10))
    assert list(old.files()) == ["words.txt"]


def test_char_tokenizer_keeps_the_white_space_it_knows():
    tokenizer = train_tokenizer("char", ["a b", "a"], 100)
    assert tokenizer.decode(tokenizer.encode("b\ta  b")) == "b a  b"
    tokenizer = train_tokenizer("char", ["a\u3000b\tc"], 100)
    assert tokenizer.decode(tokenizer.encode("a\tb\u3000c")) == "a\tb\u3000c"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("joint", [True, False])
def test_only_the_source_is_normalized(kind, joint):
    sources, targets = ["Ｈｅｌｌｏ ² world， hello 2"] * 3, ["你好，世界！ x² 2,! e\u200cf"] * 3
    pair = train_pair(kind, sources, targets, 100, joint, source_normalization="nmt_nfkc")
    assert pair.source.encode("  Ｈｅｌｌｏ ²  world，") == pair.source.encode("Hello 2 world,")
    assert pair.target.decode(pair.target.encode(targets[0])) == targets[0]
    assert UNK not in pair.source.encode(sources[0])
    assert pair.joint == joint
    if joint:
        pieces = [[side.piece(i) for i in range(side.vocab_size)] for side in (pair.source, pair.target)]
        assert pieces[0] == pieces[1]
    again = pair_from_files(pair.files())
    assert again.joint == joint
    assert again.files() == pair.files()
    assert again.source.encode("Ｈｅｌｌｏ") == pair.source.encode("Hello")
    assert again.target.decode(again.target.encode(targets[0])) == targets[0]


def test_an_unknown_normalization_is_refused():
    with pytest.raises(UserError, match=r"config\.tokenizer\.source_normalization is 'nfd'.*identity"):
        train_pair("bpe", GERMAN, ENGLISH, 100, True, source_normalization="nfd")


def test_invalid_arguments():
    with pytest.raises(UserError, match=r"config\.tokenizer\.kind is 'wordpiece'.*bpe"):
        train_tokenizer("wordpiece", TEXTS, 100)
    with pytest.raises(UserError, match="empty"):
        train_tokenizer("bpe", ["", "  "], 100)
    with pytest.raises(UserError, match=r"config\.tokenizer\.vocab_size is 5, but .* need \d+"):
        train_tokenizer("bpe", TEXTS, 5)
    with pytest.raises(UserError, match=r"config\.tokenizer\.vocab_size"):
        train_tokenizer("unigram", TEXTS, -1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "missing"),
        ({"tokenizer.model": b"nonsense"}, "tokenizer.model is not a sentencepiece model"),
        ({"tokenizer.model": b""}, "tokenizer.model"),
        ({"words.txt": b"\xff"}, "words.txt is not UTF-8"),
        ({"words.txt": b"a\nb\n"}, "words.txt does not begin"),
        ({"characters.txt": b"<pad>\n<s>\n</s>\n<unk>\na\na\n"}, "line 'a' twice"),
    ],
)
def test_broken_files(files, message):
    with pytest.raises(UserError, match=message):
        tokenizer_from_files(files)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("joint", [True, False])
def test_pair(kind, joint):
    pair = train_pair(kind, GERMAN, ENGLISH, 100, joint)
    assert (pair.source is pair.target) == joint
    files = pair.files()
    assert len(files) == (1 if joint else 2)
    again = pair_from_files(files)
    assert again.joint == joint
    assert again.source.encode_batch(GERMAN) == pair.source.encode_batch(GERMAN)
    assert again.target.encode_batch(ENGLISH) == pair.target.encode_batch(ENGLISH)
    if not joint:
        assert pair.source.files() != pair.target.files()
        name = next(name for name in files if name.startswith("target."))
        with pytest.raises(UserError, match="missing"):
            pair_from_files({other: data for other, data in files.items() if other != name})
