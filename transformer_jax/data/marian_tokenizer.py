# ruff: noqa: D102  (the methods are documented once, in Tokenizer)
"""The tokenizer of MarianMT models: a sentencepiece model, and a separate vocabulary that numbers the pieces."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from transformer_jax.data import PAD, SpecialTokens
from transformer_jax.data.readers import encodable
from transformer_jax.system import UserError

_LANGUAGE_CODE = re.compile(r">>.*?<<", re.DOTALL)
_WORD_BEGIN = "\u2581"
_FIELDS = {"pieces": list, "padding_place": int, "start": int, "end": int, "unknown": int}


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
