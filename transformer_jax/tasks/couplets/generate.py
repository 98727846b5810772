"""Lower lines to upper lines: a model, its search, and the rules of couplets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from transformer_jax.data.tokenizers import EOS, PAD, Tokenizer
from transformer_jax.decoding.generator import Generator, SentenceConstraints
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.tasks.couplets.enforce import Plan, keep_rules, make_plan, vocabulary_of
from transformer_jax.tasks.couplets.rules import Rules


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
) -> list[list[Reply]]:
    """The `options.n_best` best lower lines to each upper line, best first, or as many samples.

    Where the rules allow fewer lines there are fewer, but at least one. Every line keeps the hard rules except those
    that it gave up. Rules take precedence over options: with any rules, lines may repeat n-grams; with one of length,
    it alone bounds the length. Without rules the model alone decides.

    Raises:
        UserError: if the tokens are not characters.
    """
    sources = [[*tokenizer.encode(upper), EOS] for upper in uppers]
    if rules == Rules.parse("none"):
        outputs = generator.generate(params, sources, options)
        return [[Reply(tokenizer.decode(h.tokens), h.score, h.log_prob, ()) for h in found] for found in outputs]
    vocabulary = vocabulary_of(tokenizer)
    plans = [make_plan(upper, rules, tokenizer, vocabulary) for upper in uppers]
    options = replace(options, no_repeat_ngram=0)
    if rules.length > 0:
        options = replace(options, min_length=0, max_length=None)
    if rules.is_hard("length"):
        # An output is then at most as long as its source, which keeps the cache small.
        options = replace(options, max_extra_tokens=0)
    constraints = SentenceConstraints(keep_rules, vocabulary, [plan.line for plan in plans])
    outputs = generator.generate(params, sources, options, [plan.forced for plan in plans], constraints=constraints)
    return [
        [Reply(_text(h.tokens, upper, plan, tokenizer), h.score, h.log_prob, plan.gave_up) for h in found]
        for upper, plan, found in zip(uppers, plans, outputs, strict=True)
    ]


def _text(tokens: Sequence[int], upper: str, plan: Plan, tokenizer: Tokenizer) -> str:
    """Forced marks are those of the upper line, which the vocabulary may lack."""
    forced = [*plan.forced, *[PAD] * len(tokens)]
    return "".join(
        tokenizer.piece(token) if forced[place] == PAD else upper[place] for place, token in enumerate(tokens)
    )
