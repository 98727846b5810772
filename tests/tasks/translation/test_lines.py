"""Lines of output: blank for blank ones, never two, begun as asked, and the same from a stream."""

import io
import random

import pytest
import sentencepiece

from tests.interop.marian_folders import ENGLISH, GERMAN, sentencepiece_model
from tests.tasks.toys import TEXTS, tiny_config, tiny_params, tiny_tokenizer
from transformer_jax.data import SpecialTokens
from transformer_jax.data.readers import is_blank
from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer
from transformer_jax.data.tokenizers import TokenizerPair, train_tokenizer
from transformer_jax.decoding.generator import Generator, Hypothesis
from transformer_jax.system import UserError
from transformer_jax.tasks.translation.translator import Translator, TranslatorSettings

SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def marian(byte_fallback):
    if not byte_fallback:
        model = sentencepiece_model((*GERMAN, *ENGLISH), 90)
    else:
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*GERMAN, *ENGLISH]),
            model_writer=written,
            vocab_size=350,
            hard_vocab_limit=False,
            byte_fallback=True,
            minloglevel=2,
        )
        model = written.getvalue()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    numbers = range(processor.vocab_size())
    pieces = [processor.id_to_piece(i) for i in numbers if not processor.is_control(i) and not processor.is_unknown(i)]
    return MarianTokenizer(model, ["<pad>", "</s>", "<unk>", *pieces], SpecialTokens(0, 1, 2), 0)


TOKENIZERS = {
    "bytes": lambda: marian(byte_fallback=True),
    "marian": lambda: marian(byte_fallback=False),
    "unigram": lambda: train_tokenizer("unigram", [*GERMAN, *ENGLISH], 90),
    "bpe": lambda: train_tokenizer("bpe", [*GERMAN, *ENGLISH], 90),
    "word": lambda: train_tokenizer("word", [*GERMAN, *ENGLISH], 90),
    "char": lambda: train_tokenizer("char", [*GERMAN, *ENGLISH], 90),
}


def translator_of(tokenizer, **settings):
    pair = TokenizerPair(tokenizer, tokenizer, joint=True)
    config = tiny_config(pair)
    never = ((tokenizer.special_tokens.unk,), (tokenizer.special_tokens.bos,))
    return Translator(config, tiny_params(config), pair, TranslatorSettings(bad_words=never, **settings))


@pytest.fixture(scope="module", params=TOKENIZERS)
def model(request):
    return translator_of(TOKENIZERS[request.param]())


@pytest.fixture
def writes(monkeypatch):
    """Makes models write given tokens, after their prefix."""

    def write(ids):
        monkeypatch.setattr(Generator, "stream", lambda self, params, source, options, prefix=(): iter([*prefix, *ids]))

        def generate(self, params, sources, options, prefixes=None, places=None, report=None):
            prefixes = [()] * len(sources) if prefixes is None else prefixes
            return [[Hypothesis([*prefix, *ids], 0.0, 0.0)] for prefix in prefixes]

        monkeypatch.setattr(Generator, "generate", generate)

    return write


def test_pieces_of_a_stream_add_up_to_the_text_whatever_the_tokens(model, writes):
    rng = random.Random(0)
    tokenizer = model.tokenizer.target
    special = {0, *tokenizer.special_tokens}
    ordinary = [token for token in range(tokenizer.vocab_size) if token not in special]
    of_byte = {BYTES[tokenizer.piece(token)]: token for token in ordinary if tokenizer.piece(token) in BYTES}
    texts = ["你", "é", "😀", "\n", "\r\n", "\u2028", " ", "\ufffd", "\x85", "\ud800"]
    seen = set()
    for _ in range(100):
        ids = []
        for _ in range(rng.randint(0, 10)):
            if of_byte and rng.random() < 0.6:
                whole = rng.choice(texts).encode("utf-8", "surrogatepass")
                ids += [of_byte[byte] for byte in whole[: rng.randint(1, 4)]]
            else:
                ids.append(rng.choice(ordinary))
        writes(ids)
        prefix = rng.choice([None, "Two men ", "Two", "  A dog."])
        [text] = model.translate(["Wo"], prefix=prefix)
        pieces = list(model.stream("Wo", prefix=prefix))
        assert "".join(pieces) == text, ids
        assert "" not in pieces
        assert not set(SEPARATORS) & set(text)
        assert text.startswith(prefix or "")
        seen |= set(text)
    assert not of_byte or {"\ufffd", "你", "😀"} & seen


@pytest.mark.parametrize(
    "invisible", ["\u200d", "\u00ad", "\x1b", "\ufeff\u2060", "\u3164 \u115f", "\u034f\ufe0f", "\u2800"]
)
def test_a_line_that_shows_nothing_is_blank(invisible, writes):
    model = translator_of(TOKENIZERS["char"]())
    writes([5])
    assert model.translate(["a", invisible], prefix="A") == ["A" + model.tokenizer.target.piece(5), ""]
    assert list(model.stream(invisible, prefix="A")) == []


@pytest.mark.parametrize("sign", ["\u0600", "\u06dd", "\u070f", "\u0890", "\U000110bd"])
def test_a_sign_that_shows_is_not_blank(sign):
    assert not is_blank(sign)


@pytest.fixture(scope="module")
def toy():
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    return Translator(config, tiny_params(config), tokenizer, TranslatorSettings())


def test_prefixes_are_for_all_or_one_each(toy):
    texts = [text for text in TEXTS if text.strip()]
    free, all_da = toy.translate(texts, beam_size=1), toy.translate(texts, beam_size=1, prefix="da")
    mixed = toy.translate(texts, beam_size=1, prefix=["da" if i % 2 else None for i in range(len(texts))])
    assert mixed == [all_da[i] if i % 2 else free[i] for i in range(len(texts))]
    assert toy.translate(texts, beam_size=1, prefix=["", " \u200b"] + [None] * (len(texts) - 2)) == free
    assert "".join(toy.stream(texts[0], prefix="da")) == all_da[0]


def test_prefixes_stand_as_typed(writes):
    writes([7, 8])
    tokenizer = TOKENIZERS["unigram"]()
    for prefix in ("Two", "Two men", " Two  men ", "A small dog"):
        model = translator_of(tokenizer)
        assert model.translate(["Wo ist"], prefix=prefix)[0].startswith(prefix)
        assert "".join(model.stream("Wo ist", prefix=prefix)).startswith(prefix)


@pytest.mark.parametrize(
    ("kind", "prefix", "named"),
    [
        ("unigram", "Tw月nty", "月"),
        ("bpe", "Tw月nty", "月"),
        ("char", "Tw月nty", "月"),
        ("word", "Two twenty", "twenty"),
    ],
)
def test_what_the_vocabulary_cannot_express_is_named(kind, prefix, named):
    model = translator_of(TOKENIZERS[kind]())
    with pytest.raises(UserError, match=rf"^Prefix 2 \('{prefix}'\) has '{named}', which"):
        model.translate(["Wo", "Wo"], prefix=[None, prefix])
    with pytest.raises(UserError, match=rf"has '{named}'"):
        model.check(["Wo"], prefix=prefix)
    with pytest.raises(UserError, match=rf"has '{named}'"):
        next(model.stream("Wo", prefix=prefix))


def test_prefixes_that_are_refused(toy):
    with pytest.raises(UserError, match=r"^There are 2 texts, but 1 prefixes; give one for each"):
        toy.translate(["a", "b"], prefix=["a"])
    with pytest.raises(UserError, match=r"^Prefix 1 has 1,201 tokens, but the limit is 1,024; shorten it"):
        toy.translate(["a", "b"], prefix="a" * 1_200)
    with pytest.raises(UserError, match=r"^Prefix 2 \('a\\nb'\) has a line break"):
        toy.translate(["a", "b"], prefix=["a", "a\nb"])
    with pytest.raises(TypeError, match="str"):
        toy.translate(["a"], prefix=[3])
