# ruff: noqa: D102  (the methods are documented once, in Tokenizer)
"""Text to token ids and back: the interface, tokenizers for words and characters, and training for both sides."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import regex

from transformer_jax.data import BOS, SPECIAL_TOKENS, UNK, SpecialTokens, text_ids
from transformer_jax.data.readers import encodable, is_blank
from transformer_jax.data.sentencepiece_tokenizers import (
    MarianTokenizer,
    Normalization,
    SentencePieceTokenizer,
    normalized,
    train_sentencepiece,
)
from transformer_jax.system import UserError, check_value

KINDS = ("bpe", "unigram", "word", "char")

_SPECIAL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Id 0 is padding; tokenizers trained here have `SPECIAL_TOKENS`."""

    @property
    def special_tokens(self) -> SpecialTokens:
        """Ids of the beginning and the end of a sentence, and of unknown tokens."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, including the four special ones."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS or EOS; any text can be encoded."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each text."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids before the first EOS; padding and BOS are dropped."""

    def piece(self, token_id: int) -> str:
        """Printable form of a single id."""

    def files(self) -> dict[str, bytes]:
        """File name to content, as read by `tokenizer_from_files`."""


class _ListTokenizer(ABC):
    """A list of tokens, stored as text with one token per line."""

    FILE_NAME: str
    SEPARATOR: str

    def __init__(self, tokens: Sequence[str]) -> None:
        """Take all tokens in the order of their ids, starting with the four special ones."""
        self._tokens = list(tokens)
        self._ids = {token: token_id for token_id, token in enumerate(self._tokens)}

    @abstractmethod
    def split(self, text: str) -> list[str]:
        """Split a text into tokens."""

    @classmethod
    @abstractmethod
    def units(cls, text: str) -> list[str]:
        """The tokens of a training text."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "_ListTokenizer":
        """Keep the most frequent tokens; ties are ordered by code point."""
        counts = Counter(token for text in texts for token in cls.units(encodable(text)))
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        return cls([*_SPECIAL_PIECES, *ranked[: max(0, vocab_size - len(_SPECIAL_PIECES))]])

    @classmethod
    def from_bytes(cls, content: bytes) -> "_ListTokenizer":
        """Read the file that `files` returns.

        Raises:
            UserError: if it is not UTF-8, lacks the special tokens, or repeats one.
        """
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{cls.FILE_NAME} is not UTF-8; copy it again from its origin.") from error
        tokens = text.removesuffix("\n").split("\n")
        if tuple(tokens[: len(_SPECIAL_PIECES)]) != _SPECIAL_PIECES:
            raise UserError(
                f"{cls.FILE_NAME} does not begin with the lines {', '.join(_SPECIAL_PIECES)}; copy it again."
            )
        if len(set(tokens)) != len(tokens):
            token, _ = Counter(tokens).most_common(1)[0]
            raise UserError(f"{cls.FILE_NAME} has the line {token!r} twice; copy it again from its origin.")
        return cls(tokens)

    @property
    def special_tokens(self) -> SpecialTokens:
        return SPECIAL_TOKENS

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(token, UNK) for token in self.split(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return self.SEPARATOR.join(self._tokens[token_id] for token_id in text_ids(ids))

    def piece(self, token_id: int) -> str:
        return self._tokens[int(token_id)]

    def files(self) -> dict[str, bytes]:
        return {self.FILE_NAME: "".join(f"{token}\n" for token in self._tokens).encode("utf-8")}


class WordTokenizer(_ListTokenizer):
    """Words and grapheme clusters (Unicode's UAX 29); decoding joins them with spaces, whatever stood between them.

    A word is a run of clusters that begin with a letter, digit or underscore, so combining marks and joiners stay
    where they are. Anything else that is no white space is a token per cluster: a punctuation mark, an emoji sequence.
    """

    FILE_NAME = "words.v2.txt"
    SEPARATOR = " "
    PATTERN = r"(?:(?=[\w\p{N}])\X)+|(?!\s)\X"

    @classmethod
    def units(cls, text: str) -> list[str]:
        return regex.findall(cls.PATTERN, text)

    def split(self, text: str) -> list[str]:
        return self.units(text)


class CodePointWordTokenizer(WordTokenizer):
    """Words as release 0.1.0 split them, at combining marks too; only read, never trained."""

    FILE_NAME = "words.txt"
    PATTERN = r"\w+|[^\w\s]"

    @classmethod
    def units(cls, text: str) -> list[str]:
        return re.findall(cls.PATTERN, text)


class CharTokenizer(_ListTokenizer):
    """Characters, as code points; white space that the vocabulary lacks, line breaks always, becomes a space."""

    FILE_NAME = "characters.txt"
    SEPARATOR = ""

    def __init__(self, tokens: Sequence[str]) -> None:
        super().__init__(tokens)
        known = "".join(token for token in self._tokens if token.isspace())
        self.other_space = rf"[^\S{re.escape(known)}]"
        """Pattern of the white space that the vocabulary lacks; all but the space itself in those of release 0.1.0."""

    @classmethod
    def units(cls, text: str) -> list[str]:
        return list(text.replace("\n", " "))  # a line of the file is a token, so no token is a line break

    def split(self, text: str) -> list[str]:
        return list(re.sub(self.other_space, " ", text))


def train_tokenizer(
    kind: str, texts: Iterable[str], vocab_size: int, *, normalization: str = "identity", byte_fallback: bool = False
) -> Tokenizer:
    """Learn a vocabulary from texts, deterministically.

    Args:
        kind: one of `KINDS`.
        texts: sentences; blank ones are ignored.
        vocab_size: maximum number of ids, including the four special ones; short texts yield fewer.
        normalization: one of `sentencepiece_tokenizers.NORMALIZATIONS`, applied to texts first; bpe and unigram only.
        byte_fallback: spell characters that the vocabulary lacks as bytes, which take 256 ids; bpe and unigram only.

    Raises:
        UserError: for an unknown kind or normalization, blank texts only, or a vocabulary too small for the texts.
    """
    check_value("source_normalization", normalization, Normalization, "config.tokenizer.{}".format)
    sentences = [text for text in texts if not is_blank(text)]
    if not sentences:
        raise UserError("The training texts for the tokenizer are empty; check the files under config.data.")
    if kind == "word":
        return WordTokenizer.train(sentences, vocab_size)
    if kind == "char":
        return CharTokenizer.train(sentences, vocab_size)
    if kind in ("bpe", "unigram"):
        model = train_sentencepiece(kind, normalized(sentences, normalization), vocab_size, byte_fallback)
        return SentencePieceTokenizer(model).with_normalization(normalization)
    raise UserError(f"config.tokenizer.kind is {kind!r}, but must be one of {', '.join(KINDS)}.")


def tokenizer_from_files(files: Mapping[str, bytes]) -> Tokenizer:
    """Rebuild a tokenizer from its `files`; other files are ignored.

    Raises:
        UserError: if the tokenizer's file is missing or broken.
    """
    if SentencePieceTokenizer.FILE_NAME in files:
        return SentencePieceTokenizer(files[SentencePieceTokenizer.FILE_NAME])
    for cls in (WordTokenizer, CodePointWordTokenizer, CharTokenizer):
        if cls.FILE_NAME in files:
            return cls.from_bytes(files[cls.FILE_NAME])
    if MarianTokenizer.MODEL_FILE in files and MarianTokenizer.VOCABULARY_FILE in files:
        return MarianTokenizer.from_bytes(files[MarianTokenizer.MODEL_FILE], files[MarianTokenizer.VOCABULARY_FILE])
    names = ", ".join(cls.FILE_NAME for cls in (SentencePieceTokenizer, WordTokenizer, CharTokenizer))
    raise UserError(f"The tokenizer's file is missing: one of {names} is needed.")


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Ids of texts for classification: BOS, so that none is empty, then as many tokens of the text as fit."""
    return [[BOS, *ids[: max_length - 1]] for ids in tokenizer.encode_batch(texts)]


@dataclass(frozen=True)
class TokenizerPair:
    """The tokenizers of both sides; often the same object if `joint`."""

    source: Tokenizer
    target: Tokenizer
    joint: bool
    """Whether they have one vocabulary; they may still normalize texts differently."""

    def files(self) -> dict[str, bytes]:
        """File name to content; unless both are the same object, names start with `source.` or `target.`."""
        if self.source is self.target:
            return self.source.files()
        sides = {"source": self.source, "target": self.target}
        return {f"{side}.{name}": data for side, tokenizer in sides.items() for name, data in tokenizer.files().items()}


def train_pair(
    kind: str,
    sources: Iterable[str],
    targets: Iterable[str],
    vocab_size: int,
    joint: bool,
    *,
    source_normalization: str = "identity",
    byte_fallback: bool = False,
) -> TokenizerPair:
    """Learn one joint vocabulary, or one per side; targets are never normalized.

    Args:
        kind: one of `KINDS`.
        sources: source sentences.
        targets: target sentences.
        vocab_size: as in `train_tokenizer`, for each vocabulary.
        joint: whether both sides share one.
        source_normalization: one of `sentencepiece_tokenizers.NORMALIZATIONS`, for the source; bpe and unigram only.
        byte_fallback: as in `train_tokenizer`.

    Raises:
        UserError: as in `train_tokenizer`.
    """
    check_value("source_normalization", source_normalization, Normalization, "config.tokenizer.{}".format)
    if not joint:
        source = train_tokenizer(
            kind, sources, vocab_size, normalization=source_normalization, byte_fallback=byte_fallback
        )
        target = train_tokenizer(kind, targets, vocab_size, byte_fallback=byte_fallback)
        return TokenizerPair(source, target, joint=False)
    if kind in ("bpe", "unigram"):
        sources = normalized(sources, source_normalization)
    target = train_tokenizer(kind, [*sources, *targets], vocab_size, byte_fallback=byte_fallback)
    if isinstance(target, SentencePieceTokenizer):
        return TokenizerPair(target.with_normalization(source_normalization), target, joint=True)
    return TokenizerPair(target, target, joint=True)


def pair_from_files(files: Mapping[str, bytes]) -> TokenizerPair:
    """Rebuild a pair from `TokenizerPair.files`.

    Raises:
        UserError: if a tokenizer's file is missing or broken.
    """
    sides = {
        side: {name.removeprefix(side): data for name, data in files.items() if name.startswith(side)}
        for side in ("source.", "target.")
    }
    if any(sides.values()):
        source, target = tokenizer_from_files(sides["source."]), tokenizer_from_files(sides["target."])
        return TokenizerPair(source, target, joint=_pieces(source) == _pieces(target))
    tokenizer = tokenizer_from_files(files)
    return TokenizerPair(tokenizer, tokenizer, joint=True)


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.piece(token_id) for token_id in range(tokenizer.vocab_size)]
