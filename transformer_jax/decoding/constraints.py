"""What every search obeys: length limits, a forced prefix, and the caller's processors."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transformer_jax.decoding.processors import LogitsProcessor, forbid_tokens, min_length
from transformer_jax.errors import UserError

_WORST = -1e9  # of a token that is forced though the model holds it for impossible: bad, but not forbidden


class Constraints(NamedTuple):
    """Limits of each sentence; all lengths count the EOS."""

    max_lengths: Int[Array, " B"]
    """The token at this position is EOS if the hypothesis has not ended before; at least 1."""
    min_lengths: Int[Array, " B"]
    prefix: Int[Array, "B L"]
    """Tokens that every hypothesis begins with; PAD where it is free."""


def make_constraints(
    batch_size: int,
    max_length: int,
    *,
    max_lengths: Int[Array, " B"] | None,
    min_lengths: Int[Array, " B"] | int,
    prefix: Int[Array, "B P"] | None,
    eos_id: int,
    pad_id: int,
) -> Constraints:
    """Fill in what the caller left out, and clip `max_lengths` to 1..L.

    Raises:
        UserError: If `max_length` is below 1, or `pad_id` is `eos_id`.
    """
    if max_length < 1:
        raise UserError(f"max_length is {max_length}, but must be at least 1, for the EOS.")
    if pad_id == eos_id:
        raise UserError(f"pad_id and eos_id are both {pad_id}, but must differ to tell where an output ends.")
    limits = jnp.full((batch_size,), max_length, jnp.int32) if max_lengths is None else max_lengths
    forced = jnp.full((batch_size, max_length), pad_id, jnp.int32)
    if prefix is not None:
        forced = forced.at[:, : prefix.shape[1]].set(prefix[:, :max_length])
    return Constraints(
        max_lengths=jnp.clip(limits, 1, max_length),
        min_lengths=jnp.broadcast_to(jnp.asarray(min_lengths, jnp.int32), (batch_size,)),
        prefix=forced,
    )


def constrain(
    log_probs: Float[Array, "B K V"],
    history: Int[Array, "B K L"],
    step: Int[Array, ""],
    constraints: Constraints,
    processors: Sequence[LogitsProcessor],
    *,
    eos_id: int,
    pad_id: int,
) -> Float[Array, "B K V"]:
    """Apply every constraint to the model's log-probabilities; each hypothesis keeps at least one finite entry.

    A forced token overrides processors and `min_lengths`, and `max_lengths` overrides the prefix. A hypothesis
    with nothing left to say, because all its continuations are forbidden, must end: it may say EOS only.
    """
    allowed = log_probs
    for process in (forbid_tokens([pad_id]), min_length(constraints.min_lengths, eos_id), *processors):
        allowed = process(history, step, allowed)

    prefix = constraints.prefix[:, step]
    must_end = step + 1 >= constraints.max_lengths
    forced = jnp.where(must_end, eos_id, jnp.where(prefix == pad_id, -1, prefix))[:, None]
    stuck = jnp.all(allowed == -jnp.inf, axis=-1)
    forced = jnp.where((forced < 0) & stuck, eos_id, forced)[..., None]
    is_forced = jnp.arange(log_probs.shape[-1]) == forced
    only_forced = jnp.where(is_forced, jnp.maximum(log_probs, _WORST), -jnp.inf)
    return jnp.where(forced >= 0, only_forced, allowed)
