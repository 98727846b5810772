"""Many sentences through one search: all take the same few steps, then those that have ended make room.

Sentences are searched in lanes, batches of fixed size. All lanes of a group stand at the same length of output, so
what is left of two soon fits into one; and the cache has room for little more than the outputs have tokens. Shapes are
from a small set, so that little is compiled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from transformer_jax.data.collate import round_up
from transformer_jax.data.tokenizers import PAD, SpecialTokens
from transformer_jax.decoding import LogitsProcessor, conventions_named, renormalize
from transformer_jax.decoding.constraints import Constraints, make_constraints
from transformer_jax.decoding.core import SearchState, advance, initial_state, is_done, keep_first_alive
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import SearchResult, beam_growth, result_of, sampling_growth
from transformer_jax.nn import Cache, Memory, Seq2Seq

HOP = 2
"""Tokens between two looks at what has ended."""
FEW = 8
"""Rows of the lane into which the last few sentences move."""


@dataclass(frozen=True)
class Plan:
    """What is compiled into a search: everything but the arrays."""

    graphdef: nnx.GraphDef = field(hash=False)  # takes a millisecond to hash
    special_tokens: SpecialTokens
    processors: tuple[LogitsProcessor, ...]
    renormalizes: bool
    options: SearchOptions
    """With a seed of 0: seeds are in the keys."""
    max_length: int
    """Of all outputs; a sentence may have a limit below it."""
    make_processor: Callable[[Any, Any], LogitsProcessor] | None


class Sentences(NamedTuple):
    """What is asked of each sentence of a lane: a row each."""

    source: Int[Array, "B S"]
    prefix: Int[Array, "B P"]
    limits: Int[Array, " B"]
    keys: Key[Array, " B"]
    guide: Any
    """Arrays [B, ...] of the sentences' own constraints, or None."""


class Fixed(NamedTuple):
    """What stays while the outputs of a lane grow."""

    memory: Memory
    constraints: Constraints
    keys: Key[Array, " B"]
    guide: Any


class Arrays(NamedTuple):
    """A lane on the device. All arrays but scalars have one row a sentence."""

    fixed: Fixed
    state: SearchState
    cache: Cache


class Lane(NamedTuple):
    """Sentences that are searched together."""

    names: list[int | None]
    """The sentence of each row; None: the row is free."""
    arrays: Arrays

    @property
    def taken(self) -> list[int]:
        """The rows with a sentence."""
        return [row for row, name in enumerate(self.names) if name is not None]


def search_in_lanes(
    plan: Plan, params: Any, shared: Any, lanes: Sequence[tuple[Sequence[int], Sentences]]
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Yield the `SearchResult` of each sentence, as arrays without the axis B, as soon as its search is done.

    Args:
        plan: of the search.
        params: of the model.
        shared: arrays that the constraints of all sentences share, or None.
        lanes: the names of the sentences of each lane, and what is asked of them; rows beyond the names are free.
    """
    now = [
        Lane([*names, *[None] * (len(sentences.limits) - len(names))], _begin(plan, params, sentences))
        for names, sentences in lanes
    ]
    step, least_room = 0, lanes[0][1].source.shape[1]
    while now:
        room = max(least_room, round_up(step + 1))
        # With nothing to gain from looking, the search goes on to the end of its room.
        step = room if len(now) == 1 and len(now[0].names) <= FEW else min(step + HOP, room)
        # All lanes are sent off before the first is waited for.
        sent = [_advance_lane(plan, params, shared, lane, step, room) for lane in now]
        now = []
        for lane, done, result in sent:
            is_over = np.asarray(done) | (step >= plan.max_length)
            if any(is_over[row] for row in lane.taken):
                found = [np.asarray(part) for part in result]
                for row, name in enumerate(lane.names):
                    if name is not None and is_over[row]:
                        yield name, tuple(part[row] for part in found)
            now.append(Lane([None if is_over[row] else name for row, name in enumerate(lane.names)], lane.arrays))
        now = _pooled(now)


def _advance_lane(
    plan: Plan, params: Any, shared: Any, lane: Lane, step: int, room: int
) -> tuple[Lane, Bool[Array, " B"], SearchResult]:
    fixed, state, cache = lane.arrays
    if cache.slots < room:
        cache = _lengthened(cache, room)
    state, cache, done, result = _advance(plan, params, shared, fixed, state, cache, step)
    return Lane(lane.names, Arrays(fixed, state, cache)), done, result


def _pooled(lanes: list[Lane]) -> list[Lane]:
    """The same sentences in as few lanes as hold them."""
    lanes = sorted((lane for lane in lanes if lane.taken), key=lambda lane: (len(lane.names), -len(lane.taken)))
    while len(lanes) > 1:
        *rest, donor = lanes
        free = [len(lane.names) - len(lane.taken) for lane in rest]
        if sum(free) < len(donor.taken):
            break
        lanes = rest
        for i in sorted(range(len(rest)), key=lambda i: -free[i]):
            if free[i] and donor.taken:
                lanes[i], donor = _moved(donor, lanes[i])
        assert not donor.taken
    return [_moved(lane, None)[0] if len(lane.taken) <= FEW < len(lane.names) else lane for lane in lanes]


def _moved(donor: Lane, receiver: Lane | None) -> tuple[Lane, Lane]:
    """Sentences of `donor` in the free rows of `receiver`, by default a new lane for few; and what stays behind."""
    own = [None] * FEW if receiver is None else receiver.names
    to = donor.arrays if receiver is None else receiver.arrays
    free = [row for row, name in enumerate(own) if name is None]
    # Rows that stay free are copies of others, and end with them.
    names, left = list(own), list(donor.names)
    rows = np.arange(len(own))
    moves = np.zeros(len(own), bool)
    for target, row in zip(free, donor.taken, strict=False):
        names[target], left[row] = donor.names[row], None
        rows[target], moves[target] = row, True
    return Lane(names, _gathered(donor.arrays, to, rows, moves)), donor._replace(names=left)


@jax.jit
def _gathered(donor: Arrays, receiver: Arrays, rows: Int[Array, " R"], moves: Bool[Array, " R"]) -> Arrays:
    """Row r is `rows[r]` of `donor` where `moves[r]`, else of `receiver`."""

    def gather(donor: Array, receiver: Array) -> Array:
        if donor.ndim == 0:
            return donor
        moved = moves.reshape(-1, *[1] * (donor.ndim - 1))
        return jnp.where(moved, donor[rows], receiver[rows])

    return jax.tree.map(gather, donor, receiver)


@partial(jax.jit, static_argnums=1)
def _lengthened(cache: Cache, slots: int) -> Cache:
    return cache.lengthened(slots)


@partial(jax.jit, static_argnums=0)
def _begin(plan: Plan, params: Any, sentences: Sentences) -> Arrays:
    batch_size = sentences.source.shape[0]
    model: Seq2Seq = nnx.merge(plan.graphdef, params)
    constraints = make_constraints(
        batch_size,
        plan.max_length,
        max_lengths=sentences.limits,
        min_lengths=plan.options.min_length + 1,
        prefix=sentences.prefix,
        eos_id=plan.special_tokens.eos,
        pad_id=PAD,
    )
    state = initial_state(
        batch_size, plan.options.num_hypotheses, plan.max_length, bos_id=plan.special_tokens.bos, pad_id=PAD
    )
    if plan.options.temperature == 0:
        state = keep_first_alive(state)
    fixed = Fixed(model.remember(sentences.source), constraints, sentences.keys, sentences.guide)
    # Outputs are about as long as their sources.
    return Arrays(fixed, state, model.empty_cache(batch_size, plan.options.num_hypotheses, sentences.source.shape[1]))


@partial(jax.jit, static_argnums=0, donate_argnums=(4, 5))
def _advance(
    plan: Plan, params: Any, shared: Any, fixed: Fixed, state: SearchState, cache: Cache, until: Int[Array, ""]
) -> tuple[SearchState, Cache, Bool[Array, " B"], SearchResult]:
    model: Seq2Seq = nnx.merge(plan.graphdef, params)
    options = plan.options
    conventions = conventions_named(options.conventions)
    processors = plan.processors
    if plan.make_processor is not None:
        processors = (*processors, plan.make_processor(shared, fixed.guide))
    if plan.renormalizes or (conventions.renormalizes and options.temperature == 0):
        processors = (*processors, renormalize)
    if options.temperature > 0:
        filters: dict[str, Any] = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
        grow = sampling_growth(
            plan.max_length, fixed.keys, plan.options.num_hypotheses, eos_id=plan.special_tokens.eos, **filters
        )
        n_best = None
    else:
        n_best = options.n_best
        grow = beam_growth(
            plan.max_length,
            plan.options.num_hypotheses,
            n_best=n_best,
            alpha=options.alpha,
            eos_id=plan.special_tokens.eos,
            conventions=conventions,
        )
    state, cache = advance(
        lambda tokens, cache: model.step(tokens, cache, fixed.memory),
        cache,
        state,
        jnp.minimum(until, plan.max_length),
        fixed.constraints,
        processors,
        grow,
        eos_id=plan.special_tokens.eos,
        pad_id=PAD,
    )
    return state, cache, is_done(state), result_of(state, pad_id=PAD, n_best=n_best)
