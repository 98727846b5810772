"""Trained encoder-decoder models.

The shared base of those with text: texts to tokens, search options, scores of given outputs; and stacks without a
vocabulary, as PyTorch's `nn.Transformer` is: vectors in, vectors out.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from flax import nnx
from jaxtyping import Float

from transformer_jax.config import DecodingConfig
from transformer_jax.data.tokenizers import Tokenizer, TokenizerPair
from transformer_jax.decoding.generator import BAD_WORDS, Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, Transformer, abstract_params
from transformer_jax.system import LineError, Positive, UserError, check_fields, check_value
from transformer_jax.system.output import Report
from transformer_jax.task_groups import upgraded_decoding

_LINE_ENDS = dict.fromkeys(map(ord, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")


def on_one_line(text: str) -> str:
    """The text with a space for each character that ends a line, whichever `str.splitlines` knows."""
    return text.translate(_LINE_ENDS)


def check_texts(texts: Sequence[str]) -> None:
    """Refuse anything but a list of texts.

    Raises:
        TypeError: if it is one string, or contains anything but strings.
    """
    if isinstance(texts, str):
        raise TypeError("texts is one string, but must be a list of strings")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text is of type {type(text).__name__}, but must be a str")


def check_batch_size(batch_size: int) -> None:
    """Refuse empty batches.

    Raises:
        UserError: if it is below 1.
    """
    check_value("batch_size", batch_size, Positive)


CHARACTERS_PER_TOKEN = 32
"""Limit of the characters of a text, per token that the model accepts."""


LARGEST_BAD_WORDS = 250_000
"""Limit of the number of sequences that a model never produces times the tokens of the longest."""


@dataclass(frozen=True)
class Seq2SeqSettings:
    """Settings of every encoder-decoder model: everything beside its sizes, vocabulary and parameters."""

    max_source_length: Positive = 1024
    """Largest number of tokens of a source, end of sentence included."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """Search options unless a call gives others."""
    bad_words: tuple[tuple[int, ...], ...] = BAD_WORDS
    """Sequences of token ids that are never produced."""
    renormalizes: bool = False
    """While searching, renormalize the probabilities over the tokens that may be produced."""

    def __post_init__(self) -> None:
        check_fields(self, "settings.{}".format)

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Stored settings, those of release 0.1.0 turned into today's."""
        return settings | {name: upgraded_decoding(settings[name]) for name in ("decoding",) if name in settings}


Settings = TypeVar("Settings", bound=Seq2SeqSettings)


class Score(NamedTuple):
    """Log-probability of a given output."""

    log_prob: float
    tokens: list[str]
    """The pieces of the target, end of sentence included."""
    token_log_probs: Float[np.ndarray, " T"]


class Seq2SeqModel(Generic[Settings]):
    """A trained encoder-decoder model. Safe to call from several threads."""

    settings_type: type[Settings]
    model_type = Seq2Seq
    not_exported = ""
    """What a folder exported to another system lacks, as a sentence for its README; empty: nothing."""

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: TokenizerPair,
        settings: Settings | None = None,
    ) -> None:
        """Put the parts together; `params` is the nested dict of `nn.split`.

        Raises:
            UserError: if the settings forbid tokens that the model does not have, or too many sequences.
        """
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer
        self.settings = self.settings_type() if settings is None else settings
        size = model_config.target_vocab_size
        count, longest = len(self.settings.bad_words), max(map(len, self.settings.bad_words), default=0)
        if count * longest > LARGEST_BAD_WORDS:
            raise UserError(
                f"settings.bad_words has {count:,} sequences of up to {longest:,} tokens, but the product must be at "
                f"most {LARGEST_BAD_WORDS:,}; drop the longest."
            )
        for word in self.settings.bad_words:
            if not word or not all(0 <= token < size for token in word):
                raise UserError(
                    f"settings.bad_words has {reprlib.repr(word)}, but each must be one or more token ids from 0 to "
                    f"{size - 1:,}; copy the model again from its origin."
                )
        self.graphdef, _ = abstract_params(Seq2Seq, model_config)

    @property
    def model(self) -> Seq2Seq:
        """The model as a Flax NNX module with its parameters."""
        model: Seq2Seq = nnx.merge(self.graphdef, self.params)
        return model

    @property
    def languages(self) -> tuple[str, str]:
        """Source and target language; empty where unknown."""
        return "", ""

    @property
    def normalization(self) -> str:
        """`_normalized` as a Python expression of `text`, for the READMEs of exported folders.

        It may use the modules regex and unicodedata, which are imported there.
        """
        return "text"

    def score(self, sources: Sequence[str], targets: Sequence[str], *, report: Report | None = None) -> list[Score]:
        """The log-probability of each target as the answer to its source.

        Args:
            sources: texts.
            targets: a text for each.
            report: called with numbers of targets as they are finished.

        Raises:
            TypeError: if a text is not a string.
            UserError: if a text is longer than the model accepts, or there are more of one than of the other.
        """
        source_ids, target_ids = self._encode_pairs(sources, targets)
        scores = self._generator(None).score(self.params, source_ids, target_ids, report=report)
        piece = self.tokenizer.target.piece
        return [
            Score(float(log_probs.sum(dtype=np.float64)), [piece(token) for token in ids], log_probs)
            for ids, log_probs in zip(target_ids, scores, strict=True)
        ]

    def check_pairs(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Refuse pairs that `score` does not accept; errors are those of `score`."""
        self._encode_pairs(sources, targets)

    def _generator(self, batch_size: int | None) -> Generator:
        size = self.settings.decoding.batch_size if batch_size is None else batch_size
        check_batch_size(size)
        return Generator(
            self.graphdef,
            batch_size=size,
            max_positions=self.model_config.position_limit,
            special_tokens=self.tokenizer.target.special_tokens,
            bad_words=self.settings.bad_words,
            renormalizes=self.settings.renormalizes,
        )

    def _search_options(self, *, beam_size: int | None, alpha: float | None, **options: Any) -> SearchOptions:
        decoding = self.settings.decoding
        options = {
            "max_extra_tokens": decoding.max_extra_tokens,
            "max_length": decoding.max_length or None,
            "conventions": decoding.conventions,
        } | {name: value for name, value in options.items() if value is not None}
        return SearchOptions(
            beam_size=decoding.beam_size if beam_size is None else beam_size,
            alpha=decoding.alpha if alpha is None else alpha,
            **options,
        )

    def _normalized(self, text: str) -> str:
        """The text as the model reads it."""
        return text

    def _encode_pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        if len(sources) != len(targets):
            raise UserError(f"There are {len(sources):,} sources, but {len(targets):,} targets; give one for each.")
        return (
            self._encode(self.tokenizer.source, sources, "Source line"),
            self._encode(self.tokenizer.target, targets, "Target line"),
        )

    def _encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], what: str, remedy: str = "split it"
    ) -> list[list[int]]:
        check_texts(texts)
        longest = self.settings.max_source_length
        if self.model_config.position_limit is not None:
            longest = min(longest, self.model_config.position_limit)
        for number, text in enumerate(texts, start=1):
            # sentencepiece makes one token of any run of unknown characters, so tokens alone would not bound a line.
            if len(text) > longest * CHARACTERS_PER_TOKEN:
                limit = longest * CHARACTERS_PER_TOKEN
                raise LineError(number, f"has {len(text):,} characters, but the limit is {limit:,}; {remedy}.", what)
        end = tokenizer.special_tokens.eos
        encoded = [[*ids, end] for ids in tokenizer.encode_batch([self._normalized(text) for text in texts])]
        for number, ids in enumerate(encoded, start=1):
            if len(ids) > longest:
                raise LineError(number, f"has {len(ids):,} tokens, but the limit is {longest:,}; {remedy}.", what)
        return encoded


@dataclass(frozen=True)
class TransformerStacksSettings:
    """Settings of the stacks: none."""

    @property
    def title(self) -> str:
        """Title of the model card."""
        return "A Transformer without embeddings"

    @property
    def limits(self) -> str:
        """Limits of the model, for its card."""
        return (
            "It reads and writes vectors, so it has no vocabulary: call `model.model`, or learn embeddings and an "
            "output layer\nfor it by training with `--config.init_from`."
        )


class TransformerStacks:
    """A loaded `nn.Transformer`: modules only, without text."""

    settings_type = TransformerStacksSettings
    model_type = Transformer

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: None = None,
        settings: TransformerStacksSettings = TransformerStacksSettings(),
    ) -> None:
        """Put the parts together; `params` is the nested dict of `nn.split`."""
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer
        self.settings = settings
        self.graphdef, _ = abstract_params(Transformer, model_config)

    @property
    def model(self) -> Transformer:
        """The module with its parameters."""
        model: Transformer = nnx.merge(self.graphdef, self.params)
        return model
