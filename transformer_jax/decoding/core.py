"""One step of every search: how hypotheses grow, and when they end.

A search keeps K alive hypotheses of each sentence and the K best that have ended. A slot whose score is -inf is
empty. A sentence is done when it has no alive hypothesis left: empty slots beget empty slots, so whatever the model
says of a sentence that is done while others of its batch go on, its result stays as it is.

Greedy search, sampling and beam search differ only in `Grow`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.decoding.constraints import Constraints, LogitsProcessor, constrain
from transformer_jax.decoding.options import Conventions
from transformer_jax.decoding.sampling import Pick, two_stage_top_k

Tree = TypeVar("Tree")


class Hypotheses(NamedTuple):
    """K hypotheses of each sentence, or empty slots (score -inf)."""

    tokens: Int[Array, "B K L"]
    """Without BOS; PAD after the last."""
    log_probs: Float[Array, "B K"]
    """Sum of the model's own log-probabilities."""
    scores: Float[Array, "B K"]
    """What hypotheses are ranked by: sum of log-probabilities after processors, over the length penalty once ended."""


class SearchState(NamedTuple):
    """Where a search stands after `step` tokens."""

    step: Int[Array, ""]
    newest: Int[Array, "B K"]
    """What the model reads next: the last token of each alive hypothesis."""
    alive: Hypotheses
    ended: Hypotheses


class Growth(NamedTuple):
    """What became of the hypotheses of one step."""

    newest: Int[Array, "B K"]
    alive: Hypotheses
    ended: Hypotheses
    parents: Int[Array, "B K"] | None
    """The slot that each alive hypothesis continues; None if every one stayed in its own."""


Grow = Callable[[SearchState, Float[Array, "B K V"], Float[Array, "B K V"], Int[Array, " B"]], Growth]
"""`(state, log_probs, allowed, max_lengths) -> growth`: the model's own and the constrained log-probabilities."""

StepFn = Callable[[Int[Array, "B K"], Any], tuple[Float[Array, "B K V"], Any]]
"""`(tokens, cache) -> (logits, cache)`: the model, any pure function of the newest tokens and of what it remembers."""


def initial_state(batch_size: int, beam_size: int, max_length: int, *, bos_id: int, pad_id: int) -> SearchState:
    """K empty hypotheses of each sentence, all alive."""
    slots = (batch_size, beam_size)
    no_tokens = jnp.full((*slots, max_length), pad_id, jnp.int32)
    nothing = jnp.full(slots, -jnp.inf, jnp.float32)
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        newest=jnp.full(slots, bos_id, jnp.int32),
        alive=Hypotheses(no_tokens, log_probs=jnp.zeros(slots), scores=jnp.zeros(slots)),
        ended=Hypotheses(no_tokens, log_probs=nothing, scores=nothing),
    )


def keep_first_alive(state: SearchState) -> SearchState:
    """Empty all slots but the first: a beam starts from one hypothesis, lest it hold K copies of it."""
    first = jnp.arange(state.newest.shape[1]) == 0
    return state._replace(alive=state.alive._replace(scores=jnp.where(first, state.alive.scores, -jnp.inf)))


def is_done(state: SearchState) -> Bool[Array, " B"]:
    """Whether each sentence has no alive hypothesis left."""
    return ~jnp.any(state.alive.scores > -jnp.inf, axis=1)


def advance(
    step_fn: StepFn,
    cache: Any,
    state: SearchState,
    until: int | Int[Array, ""],
    constraints: Constraints,
    processors: Sequence[LogitsProcessor],
    grow: Grow,
    *,
    eos_id: int,
    pad_id: int,
) -> tuple[SearchState, Any]:
    """Search on to `until` tokens, or until every sentence is done; `cache` has to have the room."""

    def go_on(carry: tuple[SearchState, Any]) -> Bool[Array, ""]:
        state, _ = carry
        return (state.step < until) & ~jnp.all(is_done(state))

    def body(carry: tuple[SearchState, Any]) -> tuple[SearchState, Any]:
        state, cache = carry
        logits, cache = step_fn(state.newest, cache)
        state, parents = search_step(state, logits, constraints, processors, grow, eos_id=eos_id, pad_id=pad_id)
        return state, cache if parents is None else _moved(cache, parents)

    return jax.lax.while_loop(go_on, body, (state, cache))


def search_step(
    state: SearchState,
    logits: Float[Array, "B K V"],
    constraints: Constraints,
    processors: Sequence[LogitsProcessor],
    grow: Grow,
    *,
    eos_id: int,
    pad_id: int,
) -> tuple[SearchState, Int[Array, "B K"] | None]:
    """Grow every alive hypothesis by one token.

    Returns:
        The new state, and the slots that its alive hypotheses continue (None: each its own).
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    allowed = constrain(
        log_probs, state.alive.tokens, state.step, constraints, processors, eos_id=eos_id, pad_id=pad_id
    )
    growth = grow(state, log_probs, allowed, constraints.max_lengths)
    return SearchState(state.step + 1, growth.newest, growth.alive, growth.ended), growth.parents


def grow_in_place(pick: Pick, *, weights: Float[Array, " M"], eos_id: int) -> Grow:
    """Every hypothesis gets the one token that `pick` chooses, and stays in its slot: greedy search, sampling."""

    def grow(
        state: SearchState,
        log_probs: Float[Array, "B K V"],
        allowed: Float[Array, "B K V"],
        max_lengths: Int[Array, " B"],
    ) -> Growth:
        picked = pick(allowed, state.step)
        totals = _successor_scores(state.alive, allowed)
        grown = Hypotheses(
            tokens=state.alive.tokens.at[:, :, state.step].set(picked),
            log_probs=state.alive.log_probs + _entry(log_probs, picked),
            scores=_entry(totals, picked),
        )
        ends = picked == eos_id
        alive = grown._replace(scores=jnp.where(ends, -jnp.inf, grown.scores))
        just_ended = ends & (grown.scores > -jnp.inf)
        penalised = grown._replace(scores=grown.scores * weights[state.step + 1])
        ended = Hypotheses(
            tokens=jnp.where(just_ended[..., None], penalised.tokens, state.ended.tokens),
            log_probs=jnp.where(just_ended, penalised.log_probs, state.ended.log_probs),
            scores=jnp.where(just_ended, penalised.scores, state.ended.scores),
        )
        return Growth(picked, alive, ended, parents=None)

    return grow


def grow_beam(*, weights: Float[Array, " M"], eos_id: int, n_best: int, conventions: Conventions) -> Grow:
    """The 2K best successors compete: those that end for the K ended slots, the others for the K alive ones.

    At most K of them end (one a hypothesis), so K are left to go on.
    """

    def grow(
        state: SearchState,
        log_probs: Float[Array, "B K V"],
        allowed: Float[Array, "B K V"],
        max_lengths: Int[Array, " B"],
    ) -> Growth:
        beam_size = state.newest.shape[1]
        is_forced = state.step + 1 >= max_lengths
        if conventions.free_forced_end:
            allowed = jnp.where(is_forced[:, None, None] & (allowed > -jnp.inf), 0.0, allowed)
        candidates, parents = _best_successors(state, log_probs, allowed)
        newest = candidates.tokens[:, :, state.step]
        ends = newest == eos_id

        uncounted = is_forced & conventions.all_count_at_limit
        penalised = candidates.scores * jnp.where(uncounted, weights[state.step], weights[state.step + 1])[:, None]
        in_beam = jnp.arange(ends.shape[1]) < beam_size
        counts = ends & (in_beam | conventions.ends_outside_beam)
        ending = candidates._replace(scores=jnp.where(counts, penalised, -jnp.inf))
        # Ended ones come first: among equals the older stays, and an empty slot is never filled by another's.
        pool = Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(state.ended, ending, strict=True)))
        ended = reorder(pool, jax.lax.top_k(pool.scores, beam_size)[1])

        # What goes on from here, the forced end ends.
        at_limit = (state.step + 2 >= max_lengths)[:, None] & conventions.all_count_at_limit
        stays = ~ends & (in_beam | ~at_limit)
        going_on = candidates._replace(scores=jnp.where(stays, candidates.scores, -jnp.inf))
        chosen = jax.lax.top_k(going_on.scores, beam_size)[1]
        alive = reorder(going_on, chosen)
        if conventions.stop == "bound":
            bound = _best_attainable(alive, weights[state.step + 2], weights[max_lengths])
            hopeless = bound <= ended.scores[:, n_best - 1]
        elif conventions.stop == "estimate":
            hopeless = alive.scores.max(axis=1) * weights[state.step + 1] <= ended.scores[:, -1]
        else:
            hopeless = jnp.full(len(ends), False) if conventions.stop == "never" else ended.scores[:, -1] > -jnp.inf
        alive = alive._replace(scores=jnp.where(hopeless[:, None] & ~at_limit, -jnp.inf, alive.scores))
        return Growth(
            newest=jnp.take_along_axis(newest, chosen, axis=1),
            alive=alive,
            ended=ended,
            parents=jnp.take_along_axis(parents, chosen, axis=1),
        )

    return grow


def _best_successors(
    state: SearchState, log_probs: Float[Array, "B K V"], allowed: Float[Array, "B K V"]
) -> tuple[Hypotheses, Int[Array, "B C"]]:
    """The C = 2K best one-token extensions, best first, with their parents' slots (fewer if K V is less)."""
    batch_size, beam_size, vocab_size = allowed.shape
    # 2K of each hypothesis, then 2K of those: the best of all K V, without sorting K V at once.
    width = min(2 * beam_size, vocab_size)
    scores, tokens = two_stage_top_k(_successor_scores(state.alive, allowed), width)
    scores, index = jax.lax.top_k(scores.reshape(batch_size, -1), min(2 * beam_size, beam_size * width))
    parents = index // width
    tokens = jnp.take_along_axis(tokens.reshape(batch_size, -1), index, axis=1)
    own = jnp.take_along_axis(log_probs.reshape(batch_size, -1), parents * vocab_size + tokens, axis=1)
    parent = reorder(state.alive, parents)
    candidates = Hypotheses(parent.tokens.at[:, :, state.step].set(tokens), parent.log_probs + own, scores)
    return candidates, parents


def _best_attainable(
    alive: Hypotheses, next_weight: Float[Array, ""], last_weight: Float[Array, " B"]
) -> Float[Array, " B"]:
    """An upper bound on the score of everything that alive hypotheses can still become.

    Their sums of log-probabilities only fall. The length penalty is monotone in the length, so the best
    length is the next or the last: the last for negative sums and positive alpha.
    """
    best = jnp.max(alive.scores, axis=1)
    return jnp.maximum(best * next_weight, best * last_weight)


def _successor_scores(alive: Hypotheses, allowed: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
    # Not only a sum: what a model says of an empty slot may be anything, NaN included.
    scores = alive.scores[..., None]
    return jnp.where(scores > -jnp.inf, scores + allowed, -jnp.inf)


def _entry(values: Float[Array, "B K V"], tokens: Int[Array, "B K"]) -> Float[Array, "B K"]:
    return jnp.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]


def reorder(tree: Tree, slots: Int[Array, "B C"]) -> Tree:
    """Gather `slots` of axis 1 of every leaf `[B, K, ...]` of a pytree; scalars stay."""
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else jax.vmap(lambda x, i: x[i])(leaf, slots), tree)


def _moved(cache: Any, parents: Int[Array, "B K"]) -> Any:
    """The cache after its hypotheses have moved; one that knows better than to be copied has a method for it."""
    return cache.reordered(parents) if hasattr(cache, "reordered") else reorder(cache, parents)
