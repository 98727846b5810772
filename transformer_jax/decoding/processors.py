"""Constraints on what may come next: functions that mask or shift the log-probabilities of a decoding step.

A processor sees every hypothesis' tokens so far and the log-probabilities of the next token. It forbids a token
with -inf (hard constraint) or lowers it by some amount (soft constraint, a penalty in nats). Processors run in
order, each on the result of the one before. One that depends on the sentence is a closure over arrays whose
leading axis is B.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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
