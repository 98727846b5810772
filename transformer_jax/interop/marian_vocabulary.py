"""Tokenizer files of a MarianMT folder as tokenizers, and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.data import SpecialTokens
from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer, SentencePieceTokenizer, processor_of
from transformer_jax.data.tokenizers import Tokenizer, TokenizerPair
from transformer_jax.interop.marian_layout import Numbering
from transformer_jax.interop.reading import flag, printable, read_bytes, read_json
from transformer_jax.system import UserError

_SOURCE, _TARGET = "source.spm", "target.spm"
_VOCABULARY, _TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_LARGEST_MODEL = 64_000_000  # bytes
_MARKERS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Side(NamedTuple):
    """One side's tokenizer, as MarianMT stores it, with our ids."""

    model: bytes
    pieces: list[str | None]
    special_tokens: SpecialTokens
    numbering: Numbering


def read_tokenizers(
    folder: Path, tokenizer_config: Mapping[str, Any], source_size: int, target_size: int, start: int
) -> tuple[MarianTokenizer, MarianTokenizer]:
    """The source and target tokenizers of a MarianMT folder.

    Args:
        folder: with source.spm, target.spm, vocab.json and, if the vocabularies are separate, target_vocab.json.
        tokenizer_config: the content of tokenizer_config.json; may be empty.
        source_size: number of source ids.
        target_size: number of target ids.
        start: their id of the decoder's first token.

    Raises:
        UserError: naming the file, if one is missing or damaged, or has duplicate or out-of-range ids.
    """
    names = {name: _token(folder, tokenizer_config, name) for name in _MARKERS}
    separate = flag(folder / TOKENIZER_CONFIG, tokenizer_config, "separate_vocabs", False)
    target_file = _TARGET_VOCABULARY if separate else _VOCABULARY
    source = _read_side(folder, _SOURCE, _VOCABULARY, names, source_size, None)
    return source, _read_side(folder, _TARGET, target_file, names, target_size, start)


def numbering_of(tokenizer: MarianTokenizer) -> Numbering:
    """The numbering of the vocabulary in the folder it was imported from."""
    return Numbering(tokenizer.padding_place, tokenizer.vocab_size)


def sides_of(pair: TokenizerPair) -> tuple[Side, Side]:
    """Source and target as MarianMT stores them; padding keeps the place it was imported with, or comes last.

    Raises:
        UserError: if a tokenizer is not a sentencepiece model.
    """
    # transformers has one id of padding for both sides, so with two vocabularies it is the last of the smaller one.
    last = min(pair.source.vocab_size, pair.target.vocab_size) - 1
    return _side(pair.source, last), _side(pair.target, last)


def write_tokenizers(folder: Path, source: Side, target: Side, *, max_length: int, languages: tuple[str, str]) -> None:
    """Write the tokenizer files of a MarianMT folder.

    Args:
        folder: an existing folder.
        source: tokenizer of the inputs.
        target: tokenizer of the outputs.
        max_length: tokens of the longest input.
        languages: of source and target; may be empty.
    """
    separate = (source.pieces, source.numbering) != (target.pieces, target.numbering)
    (folder / _SOURCE).write_bytes(source.model)
    (folder / _TARGET).write_bytes(target.model)
    write_json(folder / _VOCABULARY, _numbered(source))
    if separate:
        write_json(folder / _TARGET_VOCABULARY, _numbered(target))
    named = {
        "eos_token": source.special_tokens.eos,
        "unk_token": source.special_tokens.unk,
        "pad_token": 0,
    }
    tokenizer_config = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": languages[0] or None,
        "target_lang": languages[1] or None,
        "separate_vocabs": separate,
        "model_max_length": max_length,
        **{name: source.pieces[token_id] for name, token_id in named.items()},
    }
    write_json(
        folder / TOKENIZER_CONFIG, {name: value for name, value in tokenizer_config.items() if value is not None}
    )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, one field per line."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_side(
    folder: Path, model_file: str, vocabulary_file: str, names: Mapping[str, str], size: int, start: int | None
) -> MarianTokenizer:
    model = read_bytes(folder, model_file, _LARGEST_MODEL)
    processor_of(model, str(folder / model_file))
    vocabulary = read_json(folder, vocabulary_file)
    path = folder / vocabulary_file
    for name, token in names.items():
        if token not in vocabulary:
            raise UserError(f"{path} lacks {printable(token)}, the {name}; copy it again from its origin.")
    if len(set(names.values())) < len(names):
        given = ", ".join(printable(f"{name} {token}") for name, token in names.items())
        raise UserError(
            f"{folder / TOKENIZER_CONFIG}: special tokens must be three pieces, but are {given}; correct them."
        )
    pieces: list[str | None] = [None] * size
    for piece, token_id in vocabulary.items():
        if type(token_id) is not int or not 0 <= token_id < size:
            raise UserError(
                f"{path}: {piece!r} has the id {token_id!r}, but the model has the ids 0 to {size - 1}; "
                "copy the vocabulary that belongs to it."
            )
        if pieces[token_id] is not None:
            raise UserError(f"{path}: {pieces[token_id]!r} and {piece!r} have the same id, {token_id}; copy it again.")
        pieces[token_id] = piece
    end, unknown, padding = (vocabulary[names[name]] for name in _MARKERS)
    numbering = Numbering(padding, size)
    special_tokens = SpecialTokens(*map(numbering.here, (padding if start is None else start, end, unknown)))
    return MarianTokenizer(model, [pieces[token_id] for token_id in numbering.order()], special_tokens, padding)


def _token(folder: Path, tokenizer_config: Mapping[str, Any], name: str) -> str:
    token = tokenizer_config.get(name, _MARKERS[name])
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        raise UserError(f"{folder / TOKENIZER_CONFIG}: {name} is {token!r}, but must be a piece of {_VOCABULARY}.")
    return token


def _side(tokenizer: Tokenizer, last: int) -> Side:
    if isinstance(tokenizer, MarianTokenizer):
        return Side(tokenizer.model, tokenizer.pieces, tokenizer.special_tokens, numbering_of(tokenizer))
    if isinstance(tokenizer, SentencePieceTokenizer):
        size = tokenizer.vocab_size
        pieces: list[str | None] = [tokenizer.piece(token_id) for token_id in range(size)]
        (model,) = tokenizer.files().values()
        return Side(model, pieces, tokenizer.special_tokens, Numbering(last, size))
    raise UserError(
        "The model's tokenizer is a list of words or characters, but MarianMT needs sentencepiece; export to another "
        "system, or train with config.tokenizer.kind=bpe or unigram."
    )


def _numbered(side: Side) -> dict[str, int]:
    numbered = {
        piece: side.numbering.there(token_id) for token_id, piece in enumerate(side.pieces) if piece is not None
    }
    return dict(sorted(numbered.items(), key=lambda item: item[1]))
