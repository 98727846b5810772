"""Constraints on what may come next: processors of log-probabilities, length limits and forced prefixes.

A processor sees every hypothesis' tokens so far and the log-probabilities of the next token. It forbids a token
with -inf (hard constraint) or lowers it by some amount (soft constraint, a penalty in nats). Processors run in
order, each on the result of the one before. One that depends on the sentence is a closure over arrays whose
leading axis is B.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.system.errors import UserError

LogitsProcessor = Callable[
    [Int[Array, "B K L"], Int[Array, ""], Float[Array, "B K V"]],
    Float[Array, "B K V"],
]
"""`(history, step, log_probs) -> log_probs`.

`history` holds the tokens of each hypothesis so far, without BOS: the first `step` slots are filled, PAD follows.
The processor must be pure, and must treat each sentence by itself.
"""


def forbid_tokens(token_ids: Sequence[int]) -> LogitsProcessor:
    """Never produce any of `token_ids`, for example UNK."""
    ids = tuple(token_ids)

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        forbidden = jnp.zeros(log_probs.shape[-1], bool).at[jnp.array(ids, jnp.int32)].set(True)
        return jnp.where(forbidden, -jnp.inf, log_probs)

    return process


def forbid_sequences(sequences: Sequence[Sequence[int]]) -> LogitsProcessor:
    """Never produce any of these sequences of tokens: forbid the last of one where the others stand before."""
    forbid_singles = forbid_tokens([sequence[0] for sequence in sequences if len(sequence) == 1])
    # One array for each length: however many sequences there are, little is compiled.
    longer = [
        np.array([sequence for sequence in sequences if len(sequence) == length], np.int32)
        for length in sorted({len(sequence) for sequence in sequences} - {1})
    ]

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        log_probs = forbid_singles(history, step, log_probs)
        for table in longer:
            before, last = table[:, :-1], table[:, -1]
            num_before = before.shape[1]
            completes: Bool[Array, "B K W"] = jnp.broadcast_to(step >= num_before, (*history.shape[:2], len(table)))
            for offset in range(num_before):
                recent = jnp.take(history, step - num_before + offset, axis=2, mode="clip")
                completes &= recent[..., None] == before[:, offset]
            forbidden = jnp.zeros(log_probs.shape, bool).at[:, :, last].max(completes)
            log_probs = jnp.where(forbidden, -jnp.inf, log_probs)
        return log_probs

    return process


def renormalize(
    history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
) -> Float[Array, "B K V"]:
    """Let the probabilities of what the processors before have left add up to 1 again; nothing left stays nothing."""
    is_left = jnp.any(log_probs > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(is_left, jax.nn.log_softmax(log_probs, axis=-1), log_probs)


def min_length(lengths: int | Int[Array, " B"], eos_id: int) -> LogitsProcessor:
    """Forbid the end before a hypothesis has `lengths` tokens, EOS counted; one number, or one per sentence."""

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        too_short = jnp.broadcast_to(step + 1 < jnp.asarray(lengths), history.shape[:1])[:, None]
        is_eos = jnp.arange(log_probs.shape[-1]) == eos_id
        return jnp.where(too_short[..., None] & is_eos, -jnp.inf, log_probs)

    return process


def no_repeat_ngram(n: int) -> LogitsProcessor:
    """Forbid every token that would complete an n-gram the hypothesis already contains (`n` at least 1)."""

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        num_windows = history.shape[-1] - n + 1
        if num_windows < 1:
            return log_probs
        repeats: Bool[Array, "B K W"] = jnp.broadcast_to(
            jnp.arange(num_windows) + n - 1 < step, (*history.shape[:2], num_windows)
        )
        for offset in range(n - 1):
            # Where step < n no window is complete, so a clamped index here decides nothing.
            recent = jax.lax.dynamic_index_in_dim(history, step - (n - 1) + offset, axis=2)
            repeats &= history[:, :, offset : offset + num_windows] == recent
        last_tokens = history[:, :, n - 1 :]
        sentence = jnp.arange(history.shape[0])[:, None, None]
        hypothesis = jnp.arange(history.shape[1])[None, :, None]
        forbidden = jnp.zeros(log_probs.shape, bool).at[sentence, hypothesis, last_tokens].max(repeats)
        return jnp.where(forbidden, -jnp.inf, log_probs)

    return process


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
