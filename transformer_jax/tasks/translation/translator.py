"""A trained translation model: text in, text out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from transformer_jax.decoding.generator import Generator, Hypothesis
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel, Seq2SeqSettings


@dataclass(frozen=True)
class TranslatorSettings(Seq2SeqSettings):
    """Settings of a translation model: everything beside its sizes, vocabulary and parameters."""

    source_language: str = ""
    target_language: str = ""
    lowercase: bool = False
    """Trained on lower-cased text, so inputs are lower-cased too."""

    @property
    def title(self) -> str:
        """Title of the model card."""
        languages = f" from {self.source_language} to {self.target_language}" if self.source_language else ""
        return f"A model for translation{languages}"

    @property
    def limits(self) -> str:
        """Limits of the model, for its card."""
        case = "It reads and writes lower-cased text. " if self.lowercase else ""
        return (
            f"{case}It takes one sentence at a time, of at most {self.max_source_length:,} tokens, and knows only what "
            "is in\nthe data that it was trained on. Its output can be wrong or made up, the more so the less a text "
            "is like that data."
        )


class Alignment(NamedTuple):
    """Attention of each output token over the source: the cross-attention (section 3.2.3)."""

    source: list[str]
    """Source pieces, end of sentence included."""
    target: list[str]
    """Target pieces, end of sentence included."""
    weights: Float[np.ndarray, "layers N T S"]
    """Weights of each decoder layer and head."""


class Translation(NamedTuple):
    """One translation of a text."""

    text: str
    score: float
    """Translations are ranked by it: the log-probability over the length penalty."""
    log_prob: float
    alignment: Alignment | None = None


class Translator(Seq2SeqModel[TranslatorSettings]):
    """A trained translation model: text in, text out. Safe to call from several threads."""

    settings_type = TranslatorSettings

    @property
    def languages(self) -> tuple[str, str]:
        """See `Seq2SeqModel.languages`."""
        return self.settings.source_language, self.settings.target_language

    @property
    def normalization(self) -> str:
        """See `Seq2SeqModel.normalization`."""
        return "text.lower()" if self.settings.lowercase else "text"

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
            n_best: number of translations of each.
            return_attention: whether translations come with their `Alignment`.
            search: see `search`.

        Returns:
            One string per text or, with `n_best` above 1 or `return_attention`, the result of `search`.

        Raises:
            TypeError: if a text is not a string, or `search` has an unknown name.
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
            beam_size: hypotheses kept; default: that of the model's settings, like the next two.
            alpha: exponent of the length penalty.
            batch_size: sentences at a time with a beam of 4, and as many hypotheses with any other; it changes speed
                and memory, not results.
            prefix: beginning of every translation.
            return_attention: whether translations come with their `Alignment`.
            options: further fields of `SearchOptions`.

        Raises:
            TypeError: if a text is not a string, or an option is unknown.
            UserError: if a text is longer than the model accepts, or an option is out of range.
        """
        search_options = self._search_options(beam_size=beam_size, alpha=alpha, **options)
        sources = self._encode(self.tokenizer.source, texts, "Line")
        generator = self._generator(batch_size)
        # Blank texts stay blank: the output for an empty source is not a translation.
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
        """Refuse texts that `search` does not accept.

        Raises:
            TypeError: if a text is not a string.
            UserError: if a text is longer than the model accepts.
        """
        self._encode(self.tokenizer.source, texts, "Line")

    def stream(self, text: str, *, prefix: str | None = None, **options: Any) -> Iterator[str]:
        """Yield the translation in pieces, each as soon as its token is known.

        They add up to `translate([text], beam_size=1)` or, with a `temperature`, to a sample.

        Args:
            text: one sentence.
            prefix: beginning of the translation; it is yielded first.
            options: fields of `SearchOptions`.

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

    def _alignment(self, generator: Generator, source: list[int], hypothesis: Hypothesis) -> Alignment:
        target = [*hypothesis.tokens, self.tokenizer.target.special_tokens.eos]
        weights = np.asarray(generator.attention(self.params, source, target).cross)
        pieces = self.tokenizer.source.piece, self.tokenizer.target.piece
        return Alignment(list(map(pieces[0], source)), list(map(pieces[1], target)), weights)

    def _normalised(self, text: str) -> str:
        return text.lower() if self.settings.lowercase else text
