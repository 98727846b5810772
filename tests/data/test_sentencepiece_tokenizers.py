"""MarianMT's tokenizer on small vocabularies; parity with transformers is tested in tests/interop."""

import pytest

from tests.interop.marian_folders import CODES, ENGLISH, GERMAN, sentencepiece_model, vocabulary
from transformer_jax.data import SpecialTokens
from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer
from transformer_jax.system import UserError

MODEL = sentencepiece_model((*GERMAN, *ENGLISH), 90)
NUMBERED = vocabulary(MODEL, codes=CODES)
PIECES = ["<pad>", *(piece for piece in NUMBERED if piece != "<pad>")]
SPECIAL_TOKENS = SpecialTokens(bos=0, eos=1, unk=2)


def made(pieces=PIECES, special_tokens=SPECIAL_TOKENS, model=MODEL):
    return MarianTokenizer(model, pieces, special_tokens, len(pieces) - 1)


@pytest.fixture(scope="module")
def tokenizer():
    return made()


def test_ids_are_marians_except_for_padding(tokenizer):
    assert tokenizer.vocab_size == len(NUMBERED)
    assert tokenizer.piece(0) == "<pad>"
    for piece, number in NUMBERED.items():
        if piece != "<pad>":
            assert tokenizer.piece(number + 1) == piece


def test_texts_round_trip(tokenizer):
    for text in (*GERMAN, *ENGLISH):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_files_round_trip(tokenizer):
    again = MarianTokenizer.from_bytes(*tokenizer.files().values())
    assert again.files() == tokenizer.files()
    assert again.encode_batch(GERMAN) == tokenizer.encode_batch(GERMAN)


def test_language_codes_are_tokens(tokenizer):
    code, *rest = tokenizer.encode(f"{CODES[1]} Wo ist der Bahnhof?")
    assert tokenizer.piece(code) == CODES[1]
    assert rest == tokenizer.encode(" Wo ist der Bahnhof?")
    assert tokenizer.encode(">>xyz<< Wo")[0] == tokenizer.special_tokens.unk


@pytest.mark.parametrize("text", ["</s>", "<pad>", "a</s>b", ">></s><<", "<unk>", "\ud800", "\u4e2d"])
def test_no_text_is_a_special_token(tokenizer, text):
    assert not {0, tokenizer.special_tokens.eos} & set(tokenizer.encode(text))


def test_ids_without_a_piece_decode_to_nothing():
    hole = PIECES.index("s")
    holed = made([None if number == hole else piece for number, piece in enumerate(PIECES)])
    assert holed.piece(hole) == f"<{hole}>"
    ids = holed.encode("the dog")
    assert holed.decode([ids[0], hole, *ids[1:]]) == holed.decode(ids) == "the dog"


def test_bos_may_be_an_ordinary_piece():
    start = PIECES.index(CODES[1])
    tokenizer = made(special_tokens=SPECIAL_TOKENS._replace(bos=start))
    first, *rest = tokenizer.encode(f"{CODES[1]} Wo")
    assert first == start
    assert tokenizer.decode([first, *rest]) == f"{CODES[1]} Wo"


def test_other_bos_decodes_to_nothing():
    tokenizer = made([*PIECES, "<s>"], SPECIAL_TOKENS._replace(bos=len(PIECES)))
    assert tokenizer.decode([len(PIECES), *tokenizer.encode("the dog")]) == "the dog"
    assert len(PIECES) not in tokenizer.encode("<s>")


@pytest.mark.parametrize("model", [b"", b"no model"])
def test_a_broken_model_is_refused(model):
    with pytest.raises(UserError, match="not a sentencepiece model"):
        made(model=model)


@pytest.mark.parametrize("special_tokens", [(0, 0, 2), (0, 1, 0), (0, 1, 1)])
def test_one_id_for_two_special_tokens_is_refused(special_tokens):
    with pytest.raises(UserError, match="one id for two special tokens"):
        made(special_tokens=SpecialTokens(*special_tokens))
