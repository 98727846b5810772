"""What beam searches of different systems do differently, so that a model from elsewhere answers as it does there."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.errors import UserError


@dataclass(frozen=True)
class Conventions:
    """Where beam searches differ; the defaults are those of this package."""

    length_penalty: str = "wu"
    """wu: ((5 + |Y|) / 6)^alpha (Wu et al., 2016; section 6.1). power: |Y|^alpha. |Y| counts the end."""
    ends_outside_beam: bool = True
    """Of the 2K best successors of K hypotheses, any that ends counts. False: only one among the K best."""
    stop: str = "bound"
    """bound: when nothing alive can still win. estimate: when nothing alive would win if it ended now, with K ended
    ones to beat. full: with K ended ones. never: when every hypothesis has ended."""
    free_forced_end: bool = False
    """An end that is forced by the limit of the length costs no probability."""


PAPER = Conventions()

CONVENTIONS = {
    "paper": PAPER,
    "transformers": Conventions("power", ends_outside_beam=False, stop="estimate", free_forced_end=True),
}
"""By name: those of this package, and those of Hugging Face transformers' `generate`."""


def conventions_named(name: str) -> Conventions:
    """The conventions of that name.

    Raises:
        UserError: if there are none.
    """
    if name not in CONVENTIONS:
        raise UserError(f"conventions is {name!r}, but must be one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def length_penalty(length: Int[Array, "*shape"], alpha: float, form: str = "wu") -> Float[Array, "*shape"]:
    """((5 + |Y|) / 6)^alpha, the length penalty of Wu et al. (2016) that section 6.1 uses; |Y| counts EOS.

    Args:
        length: |Y|.
        alpha: the exponent.
        form: "wu", or "power" for |Y|^alpha.
    """
    base = length.astype(jnp.float32)
    return (base if form == "power" else (5.0 + base) / 6.0) ** alpha


def length_weights(max_length: int, alpha: float, form: str = "wu") -> Float[Array, " M"]:
    """What sums of log-probabilities are multiplied by at lengths 0 to `max_length`: one over the penalty.

    A table of factors, for powers and quotients may round differently in a batch of another size. At length 0, which
    no output has, it is 1.
    """
    return 1.0 / length_penalty(jnp.arange(max_length + 1).at[0].set(1), alpha, form)
