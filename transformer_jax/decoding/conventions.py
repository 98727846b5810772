"""What beam searches of different systems do differently, so that a model from elsewhere answers as it does there."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.errors import UserError

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
