"""Options of a search as one value, the length penalty, and the conventions of other systems' searches."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.system import UserError

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


@dataclass(frozen=True)
class SearchOptions:
    """How to search (section 6.1), and limits of the output. All lengths count the end of sentence (EOS).

    Raises:
        UserError: if a value is out of range.
    """

    beam_size: int = 4
    alpha: float = 0.6
    n_best: int = 1
    """Outputs per sentence; the beam is at least as wide."""
    max_extra_tokens: int = 50
    """An output is at most this many tokens longer than its input, unless a prefix is."""
    max_length: int | None = None
    """Most tokens of an output; default: no limit but that of `max_extra_tokens`."""
    min_length: int = 0
    temperature: float = 0.0
    """Above 0: sample from the model, at this temperature, instead of searching."""
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0
    conventions: str = "paper"
    """Name of the system whose search to follow where they differ; see `decoding.CONVENTIONS`."""

    @property
    def num_hypotheses(self) -> int:
        """Hypotheses per sentence: the width of the beam, or the number of samples."""
        return max(self.n_best, 1 if self.temperature > 0 else self.beam_size)

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, remedy: str) -> None:
            if not condition:
                raise UserError(f"{name} is {getattr(self, name)}, but must be {remedy}.")

        require(self.beam_size >= 1, "beam_size", "at least 1")
        require(self.n_best >= 1, "n_best", "at least 1")
        require(math.isfinite(self.alpha), "alpha", "a finite number")
        require(self.max_extra_tokens >= 0, "max_extra_tokens", "at least 0")
        require(self.max_length is None or self.max_length >= 1, "max_length", "at least 1")
        require(self.min_length >= 0, "min_length", "at least 0")
        require(0 <= self.temperature < math.inf, "temperature", "at least 0, and finite")
        require(self.top_k >= 0, "top_k", "at least 0, which keeps all tokens")
        require(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(self.no_repeat_ngram >= 0, "no_repeat_ngram", "at least 0, which allows all")
        require(0 <= self.seed < 2**32, "seed", "from 0 to 4,294,967,295")
        conventions_named(self.conventions)
