"""A trained translation model: text in, text out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from jaxtyping import Float

from transformer_jax.data.readers import is_blank
from transformer_jax.data.tokenizers import WordTokenizer
from transformer_jax.decoding.generator import Generator, Hypothesis
from transformer_jax.nn import AttentionWeights
from transformer_jax.system import LineError, UserError
from transformer_jax.system.output import Report
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel, Seq2SeqSettings, check_texts, on_one_line


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


ReturnAttention = bool | Literal["all"]
"""Whether translations come with attention weights: none, those over the source, or all."""


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
    attention: AttentionWeights | None = None
    """Every attention weight of the text and this translation, without a batch axis."""


class _Beginning(NamedTuple):
    """What an output begins with: a prefix, or nothing."""

    typed: str = ""
    """As the output has it; lower-cased where the model writes that."""
    ids: tuple[int, ...] = ()
    read: str = ""
    """The text of the ids: what the tokenizer makes of the prefix, white space and case perhaps changed."""


def _settled(text: str) -> str:
    """The part of a text that no further token changes.

    Decoders write U+FFFD for bytes that are not yet a character, as for those that never become one; and white space
    stands only if it is not the end.
    """
    return text.rstrip("\ufffd").rstrip() if text.endswith("\ufffd") else text


class Translator(Seq2SeqModel[TranslatorSettings]):
    """A trained translation model: text in, text out. Safe to call from several threads."""

    settings_type = TranslatorSettings
    tab = "transformer_jax.tasks.translation.tab:TranslationTab"

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
        self, texts: Sequence[str], *, n_best: int = 1, return_attention: ReturnAttention = False, **search: Any
    ) -> list[str] | list[list[Translation]]: ...
    def translate(
        self, texts: Sequence[str], *, n_best: int = 1, return_attention: ReturnAttention = False, **search: Any
    ) -> list[str] | list[list[Translation]]:
        """Translate texts, in order. Blank ones, which show nothing, become empty; no translation has a line break.

        Args:
            texts: one sentence each.
            n_best: number of translations of each.
            return_attention: whether translations come with their `Alignment`; "all": with all `AttentionWeights`, too.
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
        prefix: str | Sequence[str | None] | None = None,
        return_attention: ReturnAttention = False,
        places: Sequence[int] | None = None,
        report: Report | None = None,
        **options: Any,
    ) -> list[list[Translation]]:
        """The best translations of each text, best first.

        Args:
            texts: one sentence each.
            beam_size: hypotheses kept; default: that of the model's settings, like the next two.
            alpha: exponent of the length penalty.
            batch_size: sentences at a time with a beam of 4, and as many hypotheses with any other; it changes speed
                and memory, not results.
            prefix: beginning of every translation, which stands as typed (lower-cased if the model lower-cases);
                or a list of one for each text, None where it is free. White space at its end stands, but most
                tokenizers have no token for it, so what follows may be the rest of a word.
            return_attention: whether translations come with their `Alignment`; "all": with all `AttentionWeights`, too.
            places: from 0, that of each text among all, where these are a part; samples depend on it.
            report: called with numbers of texts as their search is finished, from several threads; for progress bars.
            options: further fields of `SearchOptions`.

        Raises:
            TypeError: if a text is not a string, or an option is unknown.
            UserError: if a text or prefix is longer than the model accepts, a prefix has what the vocabulary cannot
                express, or an option is out of range.
        """
        search_options = self._search_options(beam_size=beam_size, alpha=alpha, **options)
        sources = self._encode(self.tokenizer.source, texts, "Line")
        generator = self._generator(batch_size)
        beginnings = self._beginnings(prefix, len(texts))
        # The output for an empty source is not a translation.
        filled = [i for i, text in enumerate(texts) if not is_blank(text)]
        prefixes = None if prefix is None else [beginnings[i].ids for i in filled]
        outputs = generator.generate(
            self.params,
            [sources[i] for i in filled],
            search_options,
            prefixes,
            places=filled if places is None else [places[i] for i in filled],
            report=report,
        )
        found = [[Translation("", 0.0, 0.0)] for _ in sources]
        for i, hypotheses in zip(filled, outputs, strict=True):
            found[i] = [
                Translation(
                    self._text(hypothesis.tokens, beginnings[i]),
                    hypothesis.score,
                    hypothesis.log_prob,
                    *self._attention(generator, sources[i], hypothesis, return_attention),
                )
                for hypothesis in hypotheses
            ]
        return found

    def check(self, texts: Sequence[str], *, prefix: str | Sequence[str | None] | None = None) -> None:
        """Refuse texts and prefixes that `search` does not accept; errors are those of `search`."""
        self._encode(self.tokenizer.source, texts, "Line")
        self._beginnings(prefix, len(texts))

    def stream(self, text: str, *, prefix: str | None = None, **options: Any) -> Iterator[str]:
        """Yield the translation in pieces, each as soon as its token is known.

        They add up exactly to `translate([text], beam_size=1)` or, with a `temperature`, to a sample. Where a token is
        a part of a character, the character comes with its last token.

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
        [beginning] = self._beginnings(prefix, 1)
        if is_blank(text):
            return
        tokens: list[int] = []
        text = shown = beginning.typed
        if shown:
            yield shown
        for token in self._generator(None).stream(self.params, source, search_options, beginning.ids):
            tokens.append(token)
            if len(tokens) <= len(beginning.ids):
                continue
            text = self._text(tokens, beginning)
            settled = _settled(text)
            if len(settled) > len(shown):
                yield settled[len(shown) :]
                shown = settled
        if len(text) > len(shown):
            yield text[len(shown) :]

    def _beginnings(self, prefix: str | Sequence[str | None] | None, count: int) -> list[_Beginning]:
        """The beginnings of `count` outputs.

        Raises:
            TypeError: if a prefix is not a string.
            UserError: if there are not as many, or one is too long, has a line break, or cannot be expressed.
        """
        if prefix is None:
            return [_Beginning()] * count
        prefixes = [prefix] if isinstance(prefix, str) else ["" if each is None else each for each in prefix]
        if not isinstance(prefix, str) and len(prefixes) != count:
            raise UserError(f"There are {count:,} texts, but {len(prefixes):,} prefixes; give one for each.")
        check_texts(prefixes)
        tokenizer = self.tokenizer.target
        found = []
        for number, (typed, (*ids, _)) in enumerate(
            zip(prefixes, self._encode(tokenizer, prefixes, "Prefix", "shorten it"), strict=True), start=1
        ):
            if on_one_line(typed) != typed:
                raise LineError(number, f"({typed!r:.60}) has a line break; write it on one line.", "Prefix")
            if is_blank(typed):
                found.append(_Beginning())
                continue
            if tokenizer.special_tokens.unk in ids:
                reason = f"has {self._unknown(typed)!r}, which the model's vocabulary cannot express; begin otherwise."
                raise LineError(number, f"({typed!r:.60}) {reason}", "Prefix")
            found.append(_Beginning(self._normalized(typed), tuple(ids), on_one_line(tokenizer.decode(ids))))
        return found * count if isinstance(prefix, str) else found

    def _unknown(self, prefix: str) -> str:
        """The first character of a prefix, or word where words are the tokens, that the vocabulary does not have."""
        tokenizer = self.tokenizer.target
        units = prefix.split() if isinstance(tokenizer, WordTokenizer) else [*prefix, *prefix.split()]
        encoded = tokenizer.encode_batch([self._normalized(unit) for unit in units])
        return next(
            (unit for unit, ids in zip(units, encoded, strict=True) if tokenizer.special_tokens.unk in ids), prefix
        )

    def _text(self, tokens: Sequence[int], beginning: _Beginning) -> str:
        """The text of an output, on one line, its beginning as it was typed."""
        decode = self.tokenizer.target.decode
        text = on_one_line(decode(tokens))
        if not beginning.typed:
            return text
        if text.startswith(beginning.read):
            rest = text[len(beginning.read) :]
        else:
            rest = on_one_line(decode(tokens[len(beginning.ids) :]))
        # Tokenizers drop white space at the end of a text.
        if beginning.typed[-1:].isspace() and not beginning.read[-1:].isspace():
            rest = rest.removeprefix(" ")
        return beginning.typed + rest

    def _attention(
        self, generator: Generator, source: list[int], hypothesis: Hypothesis, wanted: ReturnAttention
    ) -> tuple[Alignment | None, AttentionWeights | None]:
        if not wanted:
            return None, None
        target = [*hypothesis.tokens, self.tokenizer.target.special_tokens.eos]
        weights = generator.attention(self.params, source, target)
        pieces = self.tokenizer.source.piece, self.tokenizer.target.piece
        alignment = Alignment(list(map(pieces[0], source)), list(map(pieces[1], target)), np.asarray(weights.cross))
        return alignment, weights if wanted == "all" else None

    def _normalized(self, text: str) -> str:
        return text.lower() if self.settings.lowercase else text
