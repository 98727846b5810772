"""Constraints on the next token: processors of log-probabilities, length limits and forced prefixes.

A processor sees the tokens of every hypothesis so far and the log-probabilities of the next token. It forbids a token
with -inf (hard constraint) or lowers its log-probability (soft constraint, a penalty in nats). Processors run in order,
each on the result of the one before. A processor that depends on the sentence closes over arrays whose leading axis
is B.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.system import NotNegative, Positive, UserError, check_value

LogitsProcessor = Callable[
    [Int[Array, "B K L"], Int[Array, ""], Float[Array, "B K V"]],
    Float[Array, "B K V"],
]
"""`(history, step, log_probs) -> log_probs`.

`history` is the tokens of each hypothesis so far, without BOS: the first `step` slots are filled, PAD follows.
The processor must be pure, and treat sentences independently.
"""

_WORST = -1e9
"""Log-probability of a forced token that the model rules out: bad, but not forbidden."""
BLOCK_WIDTHS = range(64, 257)
"""Widths of the blocks that `two_stage_top_k` cuts a row into: wide enough to scan fast, leaving few to sort."""
PADDED_WIDTH = 128
"""Width where none of these divides the row."""


def forbid_tokens(token_ids: Sequence[int]) -> LogitsProcessor:
    """Never produce any of `token_ids`, for example UNK.

    Raises:
        UserError: if one is not an id.
    """
    ids = _token_ids(token_ids)

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        forbidden = jnp.zeros(log_probs.shape[-1], bool).at[jnp.array(ids, jnp.int32)].set(True)
        return jnp.where(forbidden, -jnp.inf, log_probs)

    return process


def _token_ids(tokens: Sequence[int]) -> tuple[int, ...]:
    for token in tokens:
        check_value("A token to forbid", token, NotNegative)
    return tuple(map(int, tokens))


def forbid_sequences(sequences: Sequence[Sequence[int]]) -> LogitsProcessor:
    """Never produce any of these sequences of tokens: forbid the last token of one after all its others.

    Raises:
        UserError: if a sequence is empty, or a token is not an id.
    """
    distinct = dict.fromkeys(map(_token_ids, sequences))
    if () in distinct:
        raise UserError("A sequence to forbid is empty; give each at least one token.")
    forbid_singles = forbid_tokens([sequence[0] for sequence in distinct if len(sequence) == 1])

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        log_probs = forbid_singles(history, step, log_probs)
        longer = [sequence for sequence in distinct if 1 < len(sequence) <= history.shape[2] + 1]
        if not longer:
            return log_probs
        # One table keeps the program small, however many sequences there are: -1 stands where one is shorter.
        num_before = max(map(len, longer)) - 1
        before = np.array([[-1] * (num_before + 1 - len(sequence)) + [*sequence[:-1]] for sequence in longer], np.int32)
        last = np.array([sequence[-1] for sequence in longer], np.int32)
        places = step - num_before + jnp.arange(num_before, dtype=step.dtype)
        recent = jnp.where(places >= 0, jnp.take(history, places, axis=2, mode="clip"), -2)
        completes: Bool[Array, "B K W"] = ((recent[:, :, None] == before) | (before == -1)).all(-1)
        forbidden = jnp.zeros(log_probs.shape, bool).at[:, :, last].max(completes)
        return jnp.where(forbidden, -jnp.inf, log_probs)

    return process


def renormalize(
    history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
) -> Float[Array, "B K V"]:
    """Make the probabilities of the tokens still allowed add up to 1; if none is allowed, change nothing."""
    is_left = jnp.any(log_probs > -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(is_left, jax.nn.log_softmax(log_probs, axis=-1), log_probs)


def min_length(lengths: int | Int[Array, " B"], eos_id: int) -> LogitsProcessor:
    """Forbid EOS before a hypothesis has `lengths` tokens, EOS included; one number, or one per sentence.

    Raises:
        UserError: if the number is negative.
    """
    if isinstance(lengths, int):
        check_value("lengths", lengths, NotNegative)

    def process(
        history: Int[Array, "B K L"], step: Int[Array, ""], log_probs: Float[Array, "B K V"]
    ) -> Float[Array, "B K V"]:
        too_short = jnp.broadcast_to(step + 1 < jnp.asarray(lengths), history.shape[:1])[:, None]
        is_eos = jnp.arange(log_probs.shape[-1]) == eos_id
        return jnp.where(too_short[..., None] & is_eos, -jnp.inf, log_probs)

    return process


def no_repeat_ngram(n: int) -> LogitsProcessor:
    """Forbid every token that would complete an n-gram the hypothesis already contains.

    Raises:
        UserError: if `n` is below 1.
    """
    check_value("n", n, Positive)

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


def constrain(
    log_probs: Float[Array, "B K V"],
    history: Int[Array, "B K L"],
    step: Int[Array, ""],
    *,
    max_lengths: Int[Array, " B"],
    min_lengths: Int[Array, " B"],
    prefix: Int[Array, "B L"],
    processors: Sequence[LogitsProcessor],
    eos_id: int,
    pad_id: int,
) -> Float[Array, "B K V"]:
    """Apply every constraint to the model's log-probabilities; each hypothesis keeps at least one finite entry.

    A forced token overrides processors and `min_lengths`, and `max_lengths` overrides the prefix. A hypothesis whose
    continuations are all forbidden must end.
    """
    allowed = log_probs
    for process in (forbid_tokens([pad_id]), min_length(min_lengths, eos_id), *processors):
        allowed = process(history, step, allowed)

    begins = prefix[:, step]
    must_end = step + 1 >= max_lengths
    forced = jnp.where(must_end, eos_id, jnp.where(begins == pad_id, -1, begins))[:, None]
    stuck = jnp.all(allowed == -jnp.inf, axis=-1)
    forced = jnp.where((forced < 0) & stuck, eos_id, forced)[..., None]
    is_forced = jnp.arange(log_probs.shape[-1]) == forced
    only_forced = jnp.where(is_forced, jnp.maximum(log_probs, _WORST), -jnp.inf)
    return jnp.where(forced >= 0, only_forced, allowed)


def two_stage_top_k(x: Float[Array, "*batch V"], k: int) -> tuple[Float[Array, "*batch {k}"], Int[Array, "*batch {k}"]]:
    """`jax.lax.top_k` exactly, ties included, in two stages: the k best blocks of each row, and the best in them.

    No entry outside the k blocks with the largest maxima can be among the k largest. So the row as a whole is only
    scanned for these maxima, which vectorises where sorting does not.
    """
    size = x.shape[-1]
    width = min((w for w in BLOCK_WIDTHS if size % w == 0), key=lambda w: abs(w - PADDED_WIDTH), default=PADDED_WIDTH)
    if size < 4 * k * width:
        values, index = jax.lax.top_k(x, k)
        return values, index
    missing = -size % width
    if missing:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=-jnp.inf)
    blocks = x.reshape(*x.shape[:-1], -1, width)
    # In the order of the row, so that the first of equals still wins.
    chosen = jnp.sort(jax.lax.top_k(blocks.max(axis=-1), k)[1], axis=-1)
    candidates = jnp.take_along_axis(blocks, chosen[..., None], axis=-2).reshape(*x.shape[:-1], -1)
    values, index = jax.lax.top_k(candidates, k)
    return values, jnp.take_along_axis(chosen, index // width, axis=-1) * width + index % width
