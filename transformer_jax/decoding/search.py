"""Beam search, greedy search and sampling over a pure `step_fn(tokens, cache) -> (logits, cache)`.

`tokens: Int[B K]` is the newest token of each of K hypotheses of B sentences, `logits: Float[B K V]` are those of the
next, and `cache` is any pytree whose leaves are `[B, K, ...]`, moved along with the hypotheses, or scalars, left alone;
or it has a method `reordered(parents: Int[B K])` that does so in its own way. What does not move with hypotheses, such
as the encoder's output, `step_fn` closes over.

All functions are pure and meant to be called under the caller's `jax.jit`. All lengths count the EOS, and every
hypothesis has one: at its sentence's limit it must end. A sentence's result never depends on the rest of the batch.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.decoding.constraints import LogitsProcessor, make_constraints, renormalize
from transformer_jax.decoding.core import (
    Grow,
    Hypotheses,
    SearchState,
    StepFn,
    advance,
    grow_beam,
    grow_in_place,
    initial_state,
    keep_first_alive,
)
from transformer_jax.decoding.options import PAPER, Conventions, length_weights
from transformer_jax.decoding.sampling import pick_likeliest, sampler
from transformer_jax.system.errors import UserError


class SearchResult(NamedTuple):
    """K outputs of each sentence."""

    tokens: Int[Array, "B K L"]
    """Without BOS, with EOS; PAD after it."""
    scores: Float[Array, "B K"]
    """What outputs are ranked by: log-probability, less soft penalties of processors, over the length penalty.

    -inf where a sentence has fewer than K possible outputs; such a slot has length 0 and holds PAD.
    """
    log_probs: Float[Array, "B K"]
    """The model's own log-probability of the output, before any processor, temperature, filter or penalty."""
    lengths: Int[Array, "B K"]


def beam_search(
    step_fn: StepFn,
    cache: Any,
    *,
    batch_size: int,
    max_length: int,
    beam_size: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " B"] | None = None,
    min_lengths: Int[Array, " B"] | int = 0,
    alpha: float = 0.6,
    prefix: Int[Array, "B P"] | None = None,
    processors: Sequence[LogitsProcessor] = (),
    n_best: int | None = None,
    conventions: Conventions = PAPER,
) -> SearchResult:
    """Find the K best outputs of each sentence by beam search with length penalty (section 6.1).

    Args:
        step_fn: The model, see above.
        cache: Its initial state, leaves `[B, K, ...]` or scalars.
        batch_size: B.
        max_length: L, the static length of the result.
        beam_size: K; a beam of one is `greedy_search`, and ends at the first EOS that it prefers.
        bos_id: What the model reads first.
        eos_id: Ends a hypothesis.
        pad_id: Fills up the result; never produced.
        max_lengths: Limit of each sentence, clipped to 1..L; by default L.
        min_lengths: No hypothesis ends with fewer tokens.
        alpha: Exponent of the length penalty.
        prefix: Tokens that every output begins with, PAD after the last; they count in its score.
        processors: Further constraints, see `processors.py`.
        n_best: How many of the K outputs to return; by default all.
        conventions: What the searches of other systems do differently. By default the search stops once no alive
            hypothesis can beat the last of the `n_best` ended ones: the result is the same as if it went on, unless a
            processor raises a log-probability above 0.

    Returns:
        The best outputs, sorted best first, no two of a sentence the same.

    Raises:
        UserError: If L or K is below 1, `n_best` is not within 1..K, or `pad_id` is `eos_id`.
    """
    grow = beam_growth(max_length, beam_size, n_best=n_best, alpha=alpha, eos_id=eos_id, conventions=conventions)
    if conventions.renormalizes:
        processors = (*processors, renormalize)
    constraints = make_constraints(
        batch_size,
        max_length,
        max_lengths=max_lengths,
        min_lengths=min_lengths,
        prefix=prefix,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    state = keep_first_alive(initial_state(batch_size, beam_size, max_length, bos_id=bos_id, pad_id=pad_id))
    ids = {"eos_id": eos_id, "pad_id": pad_id}
    state, _ = advance(step_fn, cache, state, max_length, constraints, processors, grow, **ids)
    return result_of(state, pad_id=pad_id, n_best=n_best)


def greedy_search(
    step_fn: StepFn,
    cache: Any,
    *,
    batch_size: int,
    max_length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " B"] | None = None,
    min_lengths: Int[Array, " B"] | int = 0,
    alpha: float = 0.6,
    prefix: Int[Array, "B P"] | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> SearchResult:
    """Take the likeliest token at each step: `beam_search` with a beam of one, whose arguments these are."""
    return beam_search(
        step_fn,
        cache,
        batch_size=batch_size,
        max_length=max_length,
        beam_size=1,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        max_lengths=max_lengths,
        min_lengths=min_lengths,
        alpha=alpha,
        prefix=prefix,
        processors=processors,
    )


def sample(
    step_fn: StepFn,
    cache: Any,
    *,
    batch_size: int,
    max_length: int,
    num_samples: int,
    keys: Key[Array, " B"],
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_lengths: Int[Array, " B"] | None = None,
    min_lengths: Int[Array, " B"] | int = 0,
    prefix: Int[Array, "B P"] | None = None,
    processors: Sequence[LogitsProcessor] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> SearchResult:
    """Draw K = `num_samples` independent outputs of each sentence.

    `keys` holds one random key a sentence; sample k depends on that key and k alone, not on K or the batch.
    Log-probabilities, constrained by `processors`, are divided by `temperature`; then a token is drawn from the
    `top_k` likeliest (0: all), and of these from the smallest set that holds probability `top_p` (1: all).
    The other arguments are those of `beam_search`.

    Returns:
        Outputs in the order of drawing, which may repeat. Their scores have no length penalty.

    Raises:
        UserError: If L or K is below 1, `pad_id` is `eos_id`, or temperature, top-k or top-p is out of range.
    """
    grow = sampling_growth(
        max_length, keys, num_samples, temperature=temperature, top_k=top_k, top_p=top_p, eos_id=eos_id
    )
    constraints = make_constraints(
        batch_size,
        max_length,
        max_lengths=max_lengths,
        min_lengths=min_lengths,
        prefix=prefix,
        eos_id=eos_id,
        pad_id=pad_id,
    )
    state = initial_state(batch_size, num_samples, max_length, bos_id=bos_id, pad_id=pad_id)
    ids = {"eos_id": eos_id, "pad_id": pad_id}
    state, _ = advance(step_fn, cache, state, max_length, constraints, processors, grow, **ids)
    return result_of(state, pad_id=pad_id)


def beam_growth(
    max_length: int, beam_size: int, *, n_best: int | None, alpha: float, eos_id: int, conventions: Conventions
) -> Grow:
    """How hypotheses grow in `beam_search`, whose arguments and errors these are."""
    if beam_size < 1:
        raise UserError(f"beam_size is {beam_size}, but must be at least 1.")
    n_best = beam_size if n_best is None else n_best
    if not 1 <= n_best <= beam_size:
        raise UserError(f"n_best is {n_best}, but must be from 1 to the beam size, {beam_size}.")
    weights = length_weights(max_length, alpha, conventions.length_penalty)
    if conventions.stop == "full_or_best":
        conventions = replace(conventions, stop="full" if alpha else "bound")
    if beam_size == 1:
        return grow_in_place(pick_likeliest, weights=weights, eos_id=eos_id)
    return grow_beam(weights=weights, eos_id=eos_id, n_best=n_best, conventions=conventions)


def sampling_growth(
    max_length: int,
    keys: Key[Array, " B"],
    num_samples: int,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    eos_id: int,
) -> Grow:
    """How hypotheses grow in `sample`, whose arguments and errors these are."""
    pick = sampler(keys, num_samples, temperature, top_k, top_p)
    return grow_in_place(pick, weights=length_weights(max_length, 0.0), eos_id=eos_id)


def result_of(state: SearchState, *, pad_id: int, n_best: int | None = None) -> SearchResult:
    """The best `n_best` (by default all) outputs that have ended."""
    ended = Hypotheses(*(part[:, :n_best] for part in state.ended))
    return SearchResult(ended.tokens, ended.scores, ended.log_probs, jnp.sum(ended.tokens != pad_id, axis=-1))
