# ruff: noqa: D102  (the methods are documented once, in Tokenizer)
"""Sentencepiece: training, rules of normalization, and the two tokenizers, ours and that of MarianMT models."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import sentencepiece

from transformer_jax.data import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, SpecialTokens, text_ids
from transformer_jax.data.readers import encodable
from transformer_jax.system import Choice, UserError

NORMALIZATIONS = ("identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
"""Rules of sentencepiece for sources; identity keeps a text as it is, the others are lossy."""
Normalization = Annotated[str, Choice(*NORMALIZATIONS)]

_LANGUAGE_CODE = re.compile(r">>.*?<<", re.DOTALL)
_WORD_BEGIN = "\u2581"
_FIELDS = {"pieces": list, "padding_place": int, "start": int, "end": int, "unknown": int}
# Characters that sentencepiece keeps for itself, and the noncharacters that stand for them within a model.
_RESERVED = (("\u2581", "\ufdd0"), ("\u2585", "\ufdd1"), ("\t", "\ufdd2"))
_ESCAPES = str.maketrans(dict(_RESERVED))
_NORMALIZER_FIELD, _DENORMALIZER_FIELD = 3, 5  # of sentencepiece's ModelProto
_LONGEST_TRAINING_SENTENCE = 1_000_000  # bytes; sentencepiece drops longer sentences, by default above 4,192


class SentencePieceTokenizer:
    """A sentencepiece model (Kudo and Richardson, 2018), either BPE or unigram.

    How texts are normalized is part of the model. One trained here returns texts as they were, as far as it knows
    their characters, unless `with_normalization` was given a lossy rule; release 0.1.0 trained with `nmt_nfkc`.
    """

    FILE_NAME = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        """Load a serialized sentencepiece model.

        Raises:
            UserError: if `model` is not a sentencepiece model, or was not trained with this package's special ids.
        """
        self._model = model
        self._processor = processor = processor_of(model, self.FILE_NAME)
        ids = (processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id())
        if ids != (PAD, BOS, EOS, UNK):
            raise UserError(
                f"{self.FILE_NAME} has the ids {ids} for pad, bos, eos, unk, but {(PAD, BOS, EOS, UNK)} are needed; "
                "train the tokenizer with this package."
            )

    @property
    def special_tokens(self) -> SpecialTokens:
        return SPECIAL_TOKENS

    @property
    def vocab_size(self) -> int:
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(encodable(text))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # One by one: given a list, sentencepiece starts threads, which cost more than they save on short sentences.
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._processor.decode(text_ids(ids)))

    def piece(self, token_id: int) -> str:
        return str(self._processor.id_to_piece(int(token_id)))

    def files(self) -> dict[str, bytes]:
        return {self.FILE_NAME: self._model}

    def with_normalization(self, rule: str) -> "SentencePieceTokenizer":
        """The same vocabulary for texts that are first normalized by a rule of `NORMALIZATIONS`."""
        if rule == "identity":
            return self
        return SentencePieceTokenizer(with_normalizer(self._model, rule))


class MarianTokenizer:
    """One side of a MarianMT vocabulary, renumbered so that padding is 0; the other pieces keep their order.

    A language code such as `>>fra<<` at the start of a text is one token. Text spelled like a special token, such as
    `</s>`, remains text: it can neither end a sentence nor hide part of it.
    """

    MODEL_FILE = "marian.model"
    VOCABULARY_FILE = "marian.json"

    def __init__(
        self, model: bytes, pieces: Sequence[str | None], special_tokens: SpecialTokens, padding_place: int
    ) -> None:
        """Combine a sentencepiece model and a vocabulary.

        Args:
            model: a serialized sentencepiece model.
            pieces: pieces in the order of their ids; None for an id without a piece.
            special_tokens: ids of the special tokens.
            padding_place: padding's id before the renumbering, for `interop.marian`.

        Raises:
            UserError: if `model` is not a sentencepiece model, a piece is repeated, or a special token's id is out of
                range or shared.
        """
        self._model = model
        self._processor = processor_of(model, self.MODEL_FILE)
        twice = [piece for piece, count in Counter(pieces).items() if piece is not None and count > 1]
        if twice:
            raise UserError(f"{self.VOCABULARY_FILE} has the piece {twice[0]!r} twice; copy it again from its origin.")
        if not all(0 <= token_id < len(pieces) for token_id in (*special_tokens, padding_place)):
            raise UserError(
                f"{self.VOCABULARY_FILE} has a special token without a piece; copy it again from its origin."
            )
        if len({PAD, special_tokens.eos, special_tokens.unk}) < 3:
            raise UserError(f"{self.VOCABULARY_FILE} has one id for two special tokens; copy it again from its origin.")
        self._pieces = list(pieces)
        self.special_tokens = special_tokens
        self.padding_place = padding_place
        # BOS is not among them, as it may be an ordinary piece; sentencepiece itself decodes <s> to nothing.
        self._silent = {PAD, special_tokens.eos, special_tokens.unk}
        self._ids = {
            piece: token_id
            for token_id, piece in enumerate(pieces)
            if piece is not None and token_id not in self._silent
        }

    @classmethod
    def from_bytes(cls, model: bytes, vocabulary: bytes) -> "MarianTokenizer":
        """Read the files that `files` returns.

        Raises:
            UserError: as in `__init__`, or if the vocabulary file is malformed.
        """
        try:
            values: Any = json.loads(vocabulary)
            fields = {name: values[name] for name in _FIELDS}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{cls.VOCABULARY_FILE} is not a valid vocabulary; copy it again from its origin."
            ) from error
        pieces = fields["pieces"]
        if not all(type(fields[name]) is kind for name, kind in _FIELDS.items()) or not all(
            piece is None or isinstance(piece, str) for piece in pieces
        ):
            raise UserError(f"{cls.VOCABULARY_FILE} is not a valid vocabulary; copy it again from its origin.")
        special_tokens = SpecialTokens(fields["start"], fields["end"], fields["unknown"])
        return cls(model, pieces, special_tokens, fields["padding_place"])

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    @property
    def model(self) -> bytes:
        """The sentencepiece model."""
        return self._model

    @property
    def pieces(self) -> list[str | None]:
        """Pieces in the order of their ids; None for an id without a piece."""
        return list(self._pieces)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        codes = [_LANGUAGE_CODE.match(text) for text in texts]
        rest = [text[code.end() if code else 0 :] for text, code in zip(texts, codes, strict=True)]
        # num_threads=1: sentencepiece's own pool costs more than it saves on short sentences.
        cut = self._processor.encode([encodable(text) for text in rest], out_type=str, num_threads=1)
        return [
            [self._ids.get(piece, self.special_tokens.unk) for piece in ([code[0]] if code else []) + pieces]
            for code, pieces in zip(codes, cut, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        pieces: list[str] = []
        for token_id in map(int, ids):
            if token_id == self.special_tokens.eos:
                break
            piece = self._pieces[token_id]
            if piece is not None and token_id not in self._silent:
                pieces.append(piece)
        return str(self._processor.decode_pieces(pieces)).replace(_WORD_BEGIN, " ").strip()

    def piece(self, token_id: int) -> str:
        piece = self._pieces[int(token_id)]
        return f"<{int(token_id)}>" if piece is None else piece

    def files(self) -> dict[str, bytes]:
        vocabulary = {"padding_place": self.padding_place, **self.special_tokens.to_json(), "pieces": self._pieces}
        content = json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n"
        return {self.MODEL_FILE: self._model, self.VOCABULARY_FILE: content.encode("utf-8")}


def processor_of(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    """Load a serialized sentencepiece model; `name` is its file's name in errors.

    Raises:
        UserError: if `model` is not a sentencepiece model.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)  # unlike the constructor, it rejects an empty model
    except Exception as error:  # sentencepiece has no exception class of its own
        raise UserError(f"{name} is not a sentencepiece model; copy it again from its origin.") from error
    return processor


def train_sentencepiece(kind: str, sentences: list[str], vocab_size: int, byte_fallback: bool) -> bytes:
    """Train a sentencepiece model with this package's special ids that decodes what it encodes to the same text.

    Args:
        kind: bpe or unigram.
        sentences: texts without lone surrogates.
        vocab_size: maximum number of pieces; short texts yield fewer.
        byte_fallback: whether to add a piece for each byte.

    Raises:
        UserError: if `vocab_size` is too small for the texts.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(sentence.translate(_ESCAPES) for sentence in sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=byte_fallback,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            num_threads=1,
            max_sentence_length=_LONGEST_TRAINING_SENTENCE,
            minloglevel=2,
        )
    except RuntimeError as error:
        largest = re.search(r"to a value <= (\d+)", str(error))
        if largest and int(largest[1]) < vocab_size:
            return train_sentencepiece(kind, sentences, int(largest[1]), byte_fallback)
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if needed:
            raise UserError(
                f"config.tokenizer.vocab_size is {vocab_size}, but the characters alone need {needed[1]}; raise it."
            ) from error
        raise UserError(
            f"sentencepiece cannot learn {vocab_size} pieces from these texts ({error}); check "
            "config.tokenizer.vocab_size and the files under config.data."
        ) from error
    denormalizer = sentencepiece.SentencePieceNormalizer(
        norm_map=[(code, char) for char, code in _RESERVED],
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    return (
        model.getvalue()
        + _field(_NORMALIZER_FIELD, _normalizer(keeps_spaces=True, norm_map=_RESERVED))
        + _field(_DENORMALIZER_FIELD, denormalizer.serialized_normalizer_spec())
    )


def normalized(texts: Iterable[str], rule: str) -> list[str]:
    """The texts as a model `with_normalizer` sees them, but without marks for spaces; for training."""
    if rule == "identity":
        return [encodable(text) for text in texts]
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=True
    )
    return [str(normalizer.normalize(encodable(text))) for text in texts]


def with_normalizer(model: bytes, rule: str) -> bytes:
    """A sentencepiece model with the same pieces that first normalizes texts by a lossy rule of `NORMALIZATIONS`."""
    return model + _field(_NORMALIZER_FIELD, _normalizer(rule_name=rule))


def _normalizer(*, keeps_spaces: bool = False, **rules: Any) -> bytes:
    """A NormalizerSpec, by the name of its rule or by a map."""
    normalizer = sentencepiece.SentencePieceNormalizer(
        add_dummy_prefix=True, escape_whitespaces=True, remove_extra_whitespaces=not keeps_spaces, **rules
    )
    spec: bytes = normalizer.serialized_normalizer_spec()
    return spec


def _field(number: int, message: bytes) -> bytes:
    """A message as a field of another; appended to a serialized message, it replaces the field's values there.

    This is how protocol buffers define concatenation. With the generated classes of sentencepiece, a process could not
    also load those of transformers, which have the same names.
    """
    length, digits = len(message), bytearray([number << 3 | 2])
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes([*digits, length]) + message
