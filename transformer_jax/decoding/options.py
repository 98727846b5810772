"""Options of a search as one value, the length penalty, and the conventions of other systems' searches."""

from dataclasses import dataclass
from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.system import Choice, FieldError, NotNegative, Positive, Range, Seed, UserError, check_fields

PenaltyForm = Literal["wu", "power"]
StopRule = Literal["bound", "estimate", "full", "full_or_best", "never"]


@dataclass(frozen=True)
class Conventions:
    """Where beam searches differ; the defaults are those of this package."""

    length_penalty: PenaltyForm = "wu"
    """wu: ((5 + |Y|) / 6)^alpha (Wu et al., 2016; section 6.1). power: |Y|^alpha. |Y| counts the EOS."""
    ends_outside_beam: bool = True
    """Whether ended hypotheses count among all 2K best successors, or only among the K best."""
    stop: StopRule = "bound"
    """When a sentence's search stops.

    bound: no alive hypothesis can still win. estimate: there are K ended ones, and no alive one would win if it ended
    now. full: there are K ended ones. full_or_best: the same or, without a length penalty, the best of all has ended.
    never: all have ended.
    """
    free_forced_end: bool = False
    """An EOS that the length limit forces costs no probability."""
    all_count_at_limit: bool = False
    """At the length limit the K best successors count, ended or not, and no others; |Y| leaves out a forced EOS."""
    renormalizes: bool = False
    """Make the probabilities of allowed tokens add up to 1."""


PAPER = Conventions()

CONVENTIONS = {
    "paper": PAPER,
    "transformers": Conventions("power", ends_outside_beam=False, stop="estimate", free_forced_end=True),
    "ctranslate2": Conventions(
        "power",
        ends_outside_beam=False,
        stop="full_or_best",
        free_forced_end=True,
        all_count_at_limit=True,
        renormalizes=True,
    ),
}
"""By name: this package, Hugging Face transformers' `generate`, and CTranslate2's `translate_batch`."""


def conventions_named(name: str) -> Conventions:
    """The conventions of that name.

    Raises:
        UserError: if the name is unknown.
    """
    if name not in CONVENTIONS:
        raise UserError(f"conventions is {name!r}, but must be one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def length_penalty(length: Int[Array, "*shape"], alpha: float, form: PenaltyForm = "wu") -> Float[Array, "*shape"]:
    """((5 + |Y|) / 6)^alpha, the length penalty of Wu et al. (2016) that section 6.1 uses; |Y| counts EOS.

    Args:
        length: |Y|.
        alpha: the exponent.
        form: "wu", or "power" for |Y|^alpha.
    """
    base = length.astype(jnp.float32)
    return (base if form == "power" else (5.0 + base) / 6.0) ** alpha


def length_weights(max_length: int, alpha: float, form: PenaltyForm = "wu") -> Float[Array, " M"]:
    """One over the length penalty, the factor of sums of log-probabilities, at lengths 0 to `max_length`.

    A table, because powers and quotients may round differently in a batch of another size. At length 0, which no output
    has, the factor is 1.
    """
    return 1.0 / length_penalty(jnp.arange(max_length + 1).at[0].set(1), alpha, form)


NumHypotheses = Annotated[int, Range(1, 1024)]
"""Hypotheses of a sentence: beyond that, the attention of each to the past of all would take gigabytes."""
Alpha = Annotated[float, Range(-8, 8)]
"""So that the length penalty of 10,000 tokens is still a float32."""
LONGEST_OUTPUT = 100_000
"""Tokens that a search allocates memory for, whatever a config or a stranger's model folder asks."""
ExtraTokens = Annotated[int, Range(0, LONGEST_OUTPUT)]
Temperature = Annotated[float, Range(1e-6, 1e6, also=0)]
"""So that a quotient of log-probabilities is still a float32."""
TopP = Annotated[float, Range(above=0, most=1)]
ConventionsName = Annotated[str, Choice(*CONVENTIONS)]


@dataclass(frozen=True)
class SearchOptions:
    """How to search (section 6.1), and limits of the output. All lengths count the end of sentence (EOS).

    Raises:
        UserError: if a value is out of range.
    """

    beam_size: NumHypotheses = 4
    alpha: Alpha = 0.6
    n_best: NumHypotheses = 1
    """Outputs per sentence; the beam is at least as wide."""
    max_extra_tokens: ExtraTokens = 50
    """An output is at most this many tokens longer than its input, unless a prefix is."""
    max_length: Annotated[int, Range(1, LONGEST_OUTPUT)] | None = None
    """Most tokens of an output; default: no limit but that of `max_extra_tokens`."""
    min_length: NotNegative = 0
    temperature: Temperature = 0.0
    """Above 0: sample from the model, at this temperature, instead of searching."""
    top_k: NotNegative = 0
    """0 keeps all tokens."""
    top_p: TopP = 1.0
    no_repeat_ngram: NotNegative = 0
    """0 allows all."""
    seed: Seed = 0
    conventions: ConventionsName = "paper"
    """Name of the system whose search to follow where they differ; see `decoding.CONVENTIONS`."""

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per sentence: the width of the beam, or the number of samples."""
        return max(self.n_best, 1 if self.temperature > 0 else self.beam_size)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_length is not None and self.min_length > self.max_length:
            remedy = f"at most {{other}}, which is {self.max_length}"
            raise FieldError("min_length", self.min_length, remedy, "max_length")


@dataclass(frozen=True)
class DecodingConfig:
    """How outputs are searched for (section 6.1)."""

    conventions: ConventionsName = "paper"
    """paper, or another system whose search is followed where it differs; see `CONVENTIONS`."""

    beam_size: NumHypotheses = 4
    alpha: Alpha = 0.6
    """Exponent of the length penalty of Wu et al. (2016)."""
    max_extra_tokens: ExtraTokens = 50
    """An output is at most this many tokens longer than its input."""
    max_length: Annotated[int, Range(0, LONGEST_OUTPUT)] = 0
    """Largest number of tokens of an output, end of sentence included; 0: `max_extra_tokens` alone limits it."""
    batch_size: Positive = 64

    def __post_init__(self) -> None:
        check_fields(self, "config.decoding.{}".format)
