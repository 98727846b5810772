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


def test_char_tokenizer_keeps_spaces():
    tokenizer = train_tokenizer("char", ["a b", "a"], 100)
    assert tokenizer.decode(tokenizer.encode("b\ta  b")) == "b a  b"


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
