"""How to search: its options as one value, and the conventions of other systems' searches."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.system.errors import UserError

PenaltyForm = Literal["wu", "power"]
StopRule = Literal["bound", "estimate", "full", "full_or_best", "never"]


@dataclass(frozen=True)
class Conventions:
    """Where beam searches differ; the defaults are those of this package."""

    length_penalty: PenaltyForm = "wu"
    """wu: ((5 + |Y|) / 6)^alpha (Wu et al., 2016; section 6.1). power: |Y|^alpha. |Y| counts the end."""
    ends_outside_beam: bool = True
    """Of the 2K best successors of K hypotheses, any that ends counts. False: only one among the K best."""
    stop: StopRule = "bound"
    """bound: when nothing alive can still win. estimate: when nothing alive would win if it ended now, with K ended
    ones to beat. full: with K ended ones. full_or_best: the same or, without a length penalty, with the best of all.
    never: when every hypothesis has ended."""
    free_forced_end: bool = False
    """An end that is forced by the limit of the length costs no probability."""
    all_count_at_limit: bool = False
    """Of the successors of the longest length, the K best count, ended or not, and only these; in |Y| an end that is
    forced does not count."""
    renormalizes: bool = False
    """The probabilities of what may come next add up to 1 again once forbidden tokens are left out."""


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
"""By name: those of this package, of Hugging Face transformers' `generate`, and of CTranslate2's `translate_batch`."""


def conventions_named(name: str) -> Conventions:
    """The conventions of that name.

    Raises:
        UserError: if there are none.
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
    """What sums of log-probabilities are multiplied by at lengths 0 to `max_length`: one over the penalty.

    A table of factors, for powers and quotients may round differently in a batch of another size. At length 0, which
    no output has, it is 1.
    """
    return 1.0 / length_penalty(jnp.arange(max_length + 1).at[0].set(1), alpha, form)


@dataclass(frozen=True)
class SearchOptions:
    """How to search (section 6.1), and what an output must keep to. Lengths do not count the end of sentence.

    Raises:
        UserError: if a value is out of range.
    """

    beam_size: int = 4
    alpha: float = 0.6
    n_best: int = 1
    """How many outputs of each sentence; the beam is at least as wide."""
    max_extra_tokens: int = 50
    """An output is at most this many tokens longer than its input, unless a prefix is."""
    max_length: int | None = None
    min_length: int = 0
    temperature: float = 0.0
    """Above 0: draw from the model, at this temperature, instead of searching."""
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    seed: int = 0
    conventions: str = "paper"
    """What the searches of other systems do differently, by the name of the system; see `decoding.CONVENTIONS`."""

    @property
    def num_hypotheses(self) -> int:
        """How many outputs of a sentence are held at a time: the beam, or the samples."""
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
