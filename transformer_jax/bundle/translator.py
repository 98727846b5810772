"""A trained translation model: text in, text out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from transformer_jax.config import DecodingConfig
from transformer_jax.data.tokenizers import EOS, Tokenizer, TokenizerPair
from transformer_jax.errors import UserError
from transformer_jax.generation import Generator, Hypothesis, SearchOptions
from transformer_jax.models import ModelConfig, Seq2Seq, structure


@dataclass(frozen=True)
class TranslatorSettings:
    """What a translation model knows beside its sizes, vocabulary and parameters."""

    source_language: str = ""
    target_language: str = ""
    lowercase: bool = False
    """It was trained on lower-cased text, so what it reads is lower-cased too."""
    max_source_length: int = 1024
    """Tokens of the longest text taken, end of sentence included."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    """How to search unless a call says otherwise."""


class Alignment(NamedTuple):
    """What each output token looked at: the cross-attention (section 3.2.3)."""

    source: list[str]
    """The pieces read, end of sentence included."""
    target: list[str]
    """The pieces written, end of sentence included."""
    weights: Float[np.ndarray, "layers N T S"]
    """Of each decoder layer and head."""


class Translation(NamedTuple):
    """One translation of a text."""

    text: str
    score: float
    """What translations are ranked by: the log-probability over the length penalty."""
    log_prob: float
    alignment: Alignment | None = None


class Score(NamedTuple):
    """How likely a model holds a given translation."""

    log_prob: float
    tokens: list[str]
    """The pieces of the target, end of sentence included."""
    token_log_probs: Float[np.ndarray, " T"]


CHARACTERS_PER_TOKEN = 32
"""A text may have at most so many characters for each token that the model takes."""


class Translator:
    """A trained translation model: text in, text out. Safe to call from several threads."""

    settings_type = TranslatorSettings

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: TokenizerPair,
        settings: TranslatorSettings | None = None,
    ) -> None:
        """Put the parts together; `params` is the nested dict of `models.split`."""
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer
        self.settings = TranslatorSettings() if settings is None else settings
        self.graphdef, _ = structure(Seq2Seq, model_config)

    @overload
    def translate(
        self, texts: Sequence[str], *, n_best: Literal[1] = 1, return_attention: Literal[False] = False, **search: Any
    ) -> list[str]: ...
    @overload
    def translate(
        self, texts: Sequence[str], *, n_best: int = 1, return_attention: bool = False, **search: Any
    ) -> list[str] | list[list[Translation]]: ...
    def translate(
        self, texts: Sequence[str], *, n_best: int = 1, return_attention: bool = False, **search: Any
    ) -> list[str] | list[list[Translation]]:
        """Translate texts, in order; blank ones stay blank.

        Args:
            texts: one sentence each.
            n_best: how many translations of each.
            return_attention: whether translations come with their `Alignment`.
            search: see `search`.

        Returns:
            One string a text or, with `n_best` above 1 or `return_attention`, what `search` returns.

        Raises:
            TypeError: if a text is no string, or `search` has an unknown name.
            UserError: as `search`.
        """
        found = self.search(texts, n_best=n_best, return_attention=return_attention, **search)
        if n_best == 1 and not return_attention:
            return [translations[0].text for translations in found]
        return found

    def search(
        self,
        texts: Sequence[str],
        *,
        beam_size: int | None = None,
        alpha: float | None = None,
        batch_size: int | None = None,
        prefix: str | None = None,
        return_attention: bool = False,
        **options: Any,
    ) -> list[list[Translation]]:
        """The best translations of each text, best first.

        Args:
            texts: one sentence each.
            beam_size: hypotheses kept; None: as the model's settings say, like the next two.
            alpha: exponent of the length penalty.
            batch_size: sentences translated at a time; it changes speed and memory, not results.
            prefix: how every translation must begin.
            return_attention: whether translations come with their `Alignment`.
            options: further fields of `generation.SearchOptions`.

        Raises:
            TypeError: if a text is no string, or an option is unknown.
            UserError: if a text is longer than the model takes, or an option is out of range.
        """
        search_options = self._search_options(beam_size=beam_size, alpha=alpha, **options)
        sources = self._encode(self.tokenizer.source, texts, "Line")
        generator = self._generator(batch_size)
        # Blank texts need no model: what it would say of nothing is not a translation.
        filled = [i for i, text in enumerate(texts) if text.strip()]
        prefixes = None if prefix is None else [self.tokenizer.target.encode(self._normalised(prefix))] * len(filled)
        outputs = generator.generate(self.params, [sources[i] for i in filled], search_options, prefixes)
        found = [[Translation("", 0.0, 0.0)] for _ in sources]
        for i, hypotheses in zip(filled, outputs, strict=True):
            found[i] = [
                Translation(
                    self.tokenizer.target.decode(hypothesis.tokens),
                    hypothesis.score,
                    hypothesis.log_prob,
                    self._alignment(generator, sources[i], hypothesis) if return_attention else None,
                )
                for hypothesis in hypotheses
            ]
        return found

    def check(self, texts: Sequence[str]) -> None:
        """Do nothing, unless `search` would not take one of these texts.

        Raises:
            TypeError: if a text is no string.
            UserError: if a text is longer than the model takes.
        """
        self._encode(self.tokenizer.source, texts, "Line")

    def stream(self, text: str, *, prefix: str | None = None, **options: Any) -> Iterator[str]:
        """Yield the translation in pieces, each as soon as its token is known.

        They add up to `translate([text], beam_size=1)` or, with a `temperature`, to a sample.

        Args:
            text: one sentence.
            prefix: how the translation must begin; it comes first.
            options: fields of `generation.SearchOptions`.

        Raises:
            TypeError: as `search`.
            UserError: as `search`, at the first piece.
        """
        search_options = self._search_options(beam_size=1, alpha=None, **options)
        source = self._encode(self.tokenizer.source, [text], "Line")[0]
        if not text.strip():
            return
        tokens: list[int] = []
        shown = ""
        begin = [] if prefix is None else self.tokenizer.target.encode(self._normalised(prefix))
        for token in self._generator(None).stream(self.params, source, search_options, begin):
            tokens.append(token)
            so_far = self.tokenizer.target.decode(tokens)
            yield so_far[len(shown) :]
            shown = so_far

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> list[Score]:
        """The log-probability of each target as the translation of its source.

        Raises:
            TypeError: if a text is no string.
            UserError: if a text is longer than the model takes, or there are more of one than of the other.
        """
        if len(sources) != len(targets):
            raise UserError(f"There are {len(sources):,} sources, but {len(targets):,} targets; give one for each.")
        source_ids = self._encode(self.tokenizer.source, sources, "Source line")
        target_ids = self._encode(self.tokenizer.target, targets, "Target line")
        scores = self._generator(None).score(self.params, source_ids, target_ids)
        piece = self.tokenizer.target.piece
        return [
            Score(float(log_probs.sum(dtype=np.float64)), [piece(token) for token in ids], log_probs)
            for ids, log_probs in zip(target_ids, scores, strict=True)
        ]

    def _generator(self, batch_size: int | None) -> Generator:
        size = self.settings.decoding.batch_size if batch_size is None else batch_size
        _require(size >= 1, "batch_size", size, "at least 1")
        return Generator(self.graphdef, batch_size=size, max_positions=self.model_config.position_limit)

    def _search_options(self, *, beam_size: int | None, alpha: float | None, **options: Any) -> SearchOptions:
        decoding = self.settings.decoding
        options = {"max_extra_tokens": decoding.max_extra_tokens} | options
        return SearchOptions(
            beam_size=decoding.beam_size if beam_size is None else beam_size,
            alpha=decoding.alpha if alpha is None else alpha,
            **options,
        )

    def _normalised(self, text: str) -> str:
        return text.lower() if self.settings.lowercase else text

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str], what: str) -> list[list[int]]:
        if isinstance(texts, str):
            raise TypeError("texts is one string, but must be a list of strings")
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a text is of type {type(text).__name__}, but must be a str")
        longest = self.settings.max_source_length
        if self.model_config.position_limit is not None:
            longest = min(longest, self.model_config.position_limit)
        for number, text in enumerate(texts, start=1):
            # sentencepiece makes one token of any run of unknown characters, so tokens alone would not bound a line.
            if len(text) > longest * CHARACTERS_PER_TOKEN:
                raise UserError(
                    f"{what} {number:,} has {len(text):,} characters, but the limit is "
                    f"{longest * CHARACTERS_PER_TOKEN:,}; split it."
                )
        encoded = [[*ids, EOS] for ids in tokenizer.encode_batch([self._normalised(text) for text in texts])]
        for number, ids in enumerate(encoded, start=1):
            if len(ids) > longest:
                raise UserError(f"{what} {number:,} has {len(ids):,} tokens, but the limit is {longest:,}; split it.")
        return encoded

    def _alignment(self, generator: Generator, source: list[int], hypothesis: Hypothesis) -> Alignment:
        target = [*hypothesis.tokens, EOS]
        weights = np.asarray(generator.attention(self.params, source, target).cross)
        pieces = self.tokenizer.source.piece, self.tokenizer.target.piece
        return Alignment(list(map(pieces[0], source)), list(map(pieces[1], target)), weights)


def _require(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value}, but must be {remedy}.")
