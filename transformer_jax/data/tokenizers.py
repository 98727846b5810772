# ruff: noqa: D102  (the methods are documented once, in Tokenizer)
"""Text to token ids and back: sentencepiece (BPE, unigram), words or characters."""

import io
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import sentencepiece

from transformer_jax.data import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, SpecialTokens
from transformer_jax.data.marian_tokenizer import MarianTokenizer
from transformer_jax.data.readers import encodable, is_blank
from transformer_jax.system import UserError

KINDS = ("bpe", "unigram", "word", "char")

_SPECIAL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_WHITE_SPACE = re.compile(r"\s")
_LONGEST_TRAINING_SENTENCE = 1_000_000  # bytes; sentencepiece drops longer sentences, by default above 4,192


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


class SentencePieceTokenizer:
    """A sentencepiece model (Kudo and Richardson, 2018), either BPE or unigram."""

    FILE_NAME = "tokenizer.model"

    def __init__(self, model: bytes) -> None:
        """Load a serialized sentencepiece model.

        Raises:
            UserError: if `model` is not a sentencepiece model, or was not trained with this package's special ids.
        """
        self._model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # sentencepiece has no exception class of its own
            raise UserError(f"{self.FILE_NAME} is not a sentencepiece model; copy it again from its origin.") from error
        processor = self._processor
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
        return str(self._processor.decode(_content(ids)))

    def piece(self, token_id: int) -> str:
        return str(self._processor.id_to_piece(int(token_id)))

    def files(self) -> dict[str, bytes]:
        return {self.FILE_NAME: self._model}


class _ListTokenizer(ABC):
    """A list of tokens, stored as text with one token per line."""

    FILE_NAME: str
    SEPARATOR: str

    def __init__(self, tokens: Sequence[str]) -> None:
        """Take all tokens in the order of their ids, starting with the four special ones."""
        self._tokens = list(tokens)
        self._ids = {token: token_id for token_id, token in enumerate(self._tokens)}

    @staticmethod
    @abstractmethod
    def split(text: str) -> list[str]:
        """Split a text into tokens."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "_ListTokenizer":
        """Keep the most frequent tokens; ties are ordered by code point."""
        counts = Counter(token for text in texts for token in cls.split(encodable(text)))
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
        return self.SEPARATOR.join(self._tokens[token_id] for token_id in _content(ids))

    def piece(self, token_id: int) -> str:
        return self._tokens[int(token_id)]

    def files(self) -> dict[str, bytes]:
        return {self.FILE_NAME: "".join(f"{token}\n" for token in self._tokens).encode("utf-8")}


class WordTokenizer(_ListTokenizer):
    """Words and punctuation marks; decoding joins them with spaces."""

    FILE_NAME = "words.txt"
    SEPARATOR = " "

    @staticmethod
    def split(text: str) -> list[str]:
        return _WORD_OR_MARK.findall(text)


class CharTokenizer(_ListTokenizer):
    """Characters; all white-space characters become spaces."""

    FILE_NAME = "characters.txt"
    SEPARATOR = ""

    @staticmethod
    def split(text: str) -> list[str]:
        return list(_WHITE_SPACE.sub(" ", text))


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary from texts, deterministically.

    Args:
        kind: one of `KINDS`.
        texts: sentences; blank ones are ignored.
        vocab_size: maximum number of ids, including the four special ones; short texts yield fewer.

    Raises:
        UserError: for an unknown kind, blank texts only, or a vocabulary too small for the texts.
    """
    sentences = [text for text in texts if not is_blank(text)]
    if not sentences:
        raise UserError("The training texts for the tokenizer are empty; check the files under config.data.")
    if kind == "word":
        return WordTokenizer.train(sentences, vocab_size)
    if kind == "char":
        return CharTokenizer.train(sentences, vocab_size)
    if kind in ("bpe", "unigram"):
        return _train_sentencepiece(kind, [encodable(sentence) for sentence in sentences], vocab_size)
    raise UserError(f"config.tokenizer.kind is {kind!r}, but must be one of {', '.join(KINDS)}.")


def tokenizer_from_files(files: Mapping[str, bytes]) -> Tokenizer:
    """Rebuild a tokenizer from its `files`; other files are ignored.

    Raises:
        UserError: if the tokenizer's file is missing or broken.
    """
    if SentencePieceTokenizer.FILE_NAME in files:
        return SentencePieceTokenizer(files[SentencePieceTokenizer.FILE_NAME])
    for cls in (WordTokenizer, CharTokenizer):
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
    """The tokenizers of both sides; the same object if `joint`."""

    source: Tokenizer
    target: Tokenizer
    joint: bool

    def files(self) -> dict[str, bytes]:
        """File name to content; unless joint, names start with `source.` or `target.`."""
        if self.joint:
            return self.source.files()
        sides = {"source": self.source, "target": self.target}
        return {f"{side}.{name}": data for side, tokenizer in sides.items() for name, data in tokenizer.files().items()}


def train_pair(
    kind: str, sources: Iterable[str], targets: Iterable[str], vocab_size: int, joint: bool
) -> TokenizerPair:
    """Learn one joint vocabulary, or one per side.

    Raises:
        UserError: as in `train_tokenizer`.
    """
    if joint:
        tokenizer = train_tokenizer(kind, [*sources, *targets], vocab_size)
        return TokenizerPair(tokenizer, tokenizer, joint=True)
    source = train_tokenizer(kind, sources, vocab_size)
    return TokenizerPair(source, train_tokenizer(kind, targets, vocab_size), joint=False)


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
        return TokenizerPair(
            tokenizer_from_files(sides["source."]), tokenizer_from_files(sides["target."]), joint=False
        )
    tokenizer = tokenizer_from_files(files)
    return TokenizerPair(tokenizer, tokenizer, joint=True)


def _train_sentencepiece(kind: str, sentences: list[str], vocab_size: int) -> SentencePieceTokenizer:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
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
            return _train_sentencepiece(kind, sentences, int(largest[1]))
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if needed:
            raise UserError(
                f"config.tokenizer.vocab_size is {vocab_size}, but the characters alone need {needed[1]}; raise it."
            ) from error
        raise UserError(
            f"sentencepiece cannot learn {vocab_size} pieces from these texts ({error}); check "
            "config.tokenizer.vocab_size and the files under config.data."
        ) from error
    return SentencePieceTokenizer(model.getvalue())


def _content(ids: Iterable[int]) -> list[int]:
    content: list[int] = []
    for token_id in map(int, ids):
        if token_id == EOS:
            break
        if token_id not in (PAD, BOS):
            content.append(token_id)
    return content
