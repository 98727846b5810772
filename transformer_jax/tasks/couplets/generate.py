"""Lower lines to upper lines: the search under the rules, and the trained model that runs it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, overload

from transformer_jax.data import EOS, PAD, UNK
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.decoding.generator import Generator, SentenceConstraints
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.system import BlankLineError
from transformer_jax.system.output import Report
from transformer_jax.tasks.couplets import CoupletConfig
from transformer_jax.tasks.couplets.enforce import Plan, keep_rules, make_plan, vocabulary_of
from transformer_jax.tasks.couplets.rules import HIDDEN, Rules, characters, plain
from transformer_jax.tasks.couplets.sources import without_spaces
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel, Seq2SeqSettings, on_one_line


class Reply(NamedTuple):
    """One lower line."""

    text: str
    score: float
    """Replies are ranked by it: the log-probability less the penalties of weighted rules, over the length penalty."""
    log_prob: float
    """The model's own log-probability, end of line included."""
    gave_up: tuple[str, ...]
    """Hard rules that no lower line can keep together with the others, given the model's vocabulary."""


def write(
    generator: Generator,
    params: Any,
    tokenizer: Tokenizer,
    uppers: Sequence[str],
    options: SearchOptions,
    rules: Rules,
    places: Sequence[int] | None = None,
    report: Report | None = None,
) -> list[list[Reply]]:
    """The `options.n_best` best lower lines to each upper line, best first, or as many samples.

    Where the rules allow fewer lines there are fewer, but at least one. Every line keeps the hard rules except those
    that it gave up. Rules take precedence over options: with any rules, lines may repeat n-grams; with one of length,
    it alone bounds the length. Without rules the model alone decides. Samples depend on the places of the lines among
    all, by default from 0.

    `report` is called as lines are finished.

    Raises:
        UserError: if the tokens are not characters.
    """
    sources = [[*tokenizer.encode(plain(upper)), EOS] for upper in uppers]
    if rules == Rules.parse("none"):
        outputs = generator.generate(params, sources, options, places=places, report=report)
        return [
            [Reply(on_one_line(tokenizer.decode(h.tokens)), h.score, h.log_prob, ()) for h in found]
            for found in outputs
        ]
    vocabulary = vocabulary_of(tokenizer)
    plans = [make_plan(upper, rules, tokenizer, vocabulary) for upper in uppers]
    options = replace(options, no_repeat_ngram=0)
    if rules.length > 0:
        options = replace(options, min_length=0, max_length=None)
    if rules.is_hard("length"):
        # An output is then at most as long as its source, which keeps the cache small: a character is a token or more.
        options = replace(options, max_extra_tokens=0)
    constraints = SentenceConstraints(keep_rules, vocabulary, [plan.line for plan in plans])
    forced = [plan.forced for plan in plans]
    outputs = generator.generate(
        params, sources, options, forced, constraints=constraints, places=places, report=report
    )
    return [
        [Reply(_text(h.tokens, plan, tokenizer), h.score, h.log_prob, plan.gave_up) for h in found]
        for plan, found in zip(plans, outputs, strict=True)
    ]


def _text(tokens: Sequence[int], plan: Plan, tokenizer: Tokenizer) -> str:
    """Forced marks are those of the upper line, which the vocabulary may lack."""
    forced = [*plan.forced, *[PAD] * len(tokens)]
    return "".join(
        tokenizer.piece(token) if forced[place] == PAD else plan.characters[place] for place, token in enumerate(tokens)
    )


@dataclass(frozen=True)
class CoupletWriterSettings(Seq2SeqSettings):
    """Settings of a couplet model: everything beside its sizes, vocabulary and parameters."""

    rules: str = CoupletConfig.rules
    """Rules that lower lines keep unless a call says otherwise, as `Rules.parse` reads them."""

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Stored settings, those of release 0.1.0 turned into today's."""
        decoding = settings.get("decoding")
        if isinstance(decoding, dict) and "rules" in decoding:
            settings = settings | {"rules": decoding["rules"]}
        return super().upgrade(settings)

    @property
    def title(self) -> str:
        """Title of the model card."""
        return "A model for Chinese couplets (对联)"

    @property
    def limits(self) -> str:
        """Limits of the model, for its card."""
        return (
            f"It takes one upper line at a time, of at most {self.max_source_length - 1:,} characters, and answers "
            "with a lower line.\nIt knows only what is in the data that it was trained on, which nobody has read "
            "through: its\nlines can be meaningless or improper. The rules are kept by the search, not by the model."
        )


class CoupletWriter(Seq2SeqModel[CoupletWriterSettings]):
    """A trained couplet model: the upper line in, lower lines out. Safe to call from several threads."""

    settings_type = CoupletWriterSettings
    tab = "transformer_jax.tasks.couplets.tab:CoupletTab"
    not_exported = "The rules of couplets are not in this folder; its lines may break them."
    normalization = f'unicodedata.normalize("NFC", regex.sub(r"{HIDDEN.pattern}", "", "".join(text.split())))'

    @overload
    def reply(self, uppers: Sequence[str], *, n_best: Literal[1] = 1, **search: Any) -> list[str]: ...
    @overload
    def reply(self, uppers: Sequence[str], *, n_best: int = 1, **search: Any) -> list[str] | list[list[Reply]]: ...
    def reply(self, uppers: Sequence[str], *, n_best: int = 1, **search: Any) -> list[str] | list[list[Reply]]:
        """The lower line to each upper line, in order.

        Args:
            uppers: upper lines; white space in them, and what is invisible, is ignored.
            n_best: number of lower lines to each.
            search: see `search`.

        Returns:
            One string per line or, with `n_best` above 1, the result of `search`.

        Raises:
            TypeError: if a line is not a string, or `search` has an unknown name.
            UserError: as `search`.
        """
        found = self.search(uppers, n_best=n_best, **search)
        return [replies[0].text for replies in found] if n_best == 1 else found

    def search(
        self,
        uppers: Sequence[str],
        *,
        rules: Rules | str | None = None,
        beam_size: int | None = None,
        alpha: float | None = None,
        batch_size: int | None = None,
        places: Sequence[int] | None = None,
        report: Report | None = None,
        **options: Any,
    ) -> list[list[Reply]]:
        """The best lower lines to each upper line, best first, with the rules that they gave up.

        Args:
            uppers: upper lines; white space in them, and what is invisible, is ignored.
            rules: rules that lower lines keep, or their text as `Rules.parse` reads it; default: those of the model's
                settings, like the next three.
            beam_size: hypotheses kept.
            alpha: exponent of the length penalty, which matters only without a rule of length.
            batch_size: lines at a time with a beam of 4, and as many hypotheses with any other; it changes speed and
                memory, not results.
            places: from 0, that of each line among all, where these are a part; samples depend on it.
            report: called with numbers of lines as their search is finished, from several threads; for progress bars.
            options: further fields of `SearchOptions`.

        Raises:
            TypeError: if a line is not a string, or an option is unknown.
            UserError: if a line is blank or longer than the model accepts, or an option is out of range.
        """
        rules = self.settings.rules if rules is None else rules
        rules = Rules.parse(rules) if isinstance(rules, str) else rules
        search_options = self._search_options(beam_size=beam_size, alpha=alpha, **options)
        self.check(uppers)
        lines = [without_spaces(upper) for upper in uppers]
        generator = self._generator(batch_size)
        return write(generator, self.params, self.tokenizer.target, lines, search_options, rules, places, report)

    def check(self, uppers: Sequence[str]) -> None:
        """Refuse lines that `search` does not accept.

        Raises:
            TypeError: if a line is not a string.
            UserError: if a line is blank or longer than the model accepts.
        """
        self._encode(self.tokenizer.source, uppers, "Line")
        for number, upper in enumerate(uppers, start=1):
            if not self._normalized(upper):
                raise BlankLineError(number, "is blank; write an upper line of at least one character.")

    def known_share(self, upper: str) -> float:
        """Share of the characters of a line, which is not blank, that are in the model's vocabulary."""
        ids = self.tokenizer.source.encode_batch([plain(each) for each in characters(without_spaces(upper))])
        return sum(UNK not in of_one for of_one in ids) / len(ids)

    def _normalized(self, text: str) -> str:
        return plain(without_spaces(text))
