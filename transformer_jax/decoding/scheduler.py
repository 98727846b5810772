"""Inference in padded batches, and continuous batching: finished sentences are evicted, the others compacted.

The batches of a group advance in lockstep. So their outputs have one length, what is left of two batches soon fits into
one, and the cache has room for little more than the tokens so far. Shapes come from a small set, to compile little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, Key

from transformer_jax.data import PAD
from transformer_jax.decoding.constraints import LogitsProcessor
from transformer_jax.decoding.search import Search, SearchResult, SearchState
from transformer_jax.nn import Cache, Memory, Seq2Seq

STEPS_PER_SYNC = 2
"""Tokens between two checks for finished sentences."""
MIN_ROWS = 8
"""Rows of the batch that the last few sentences are compacted into."""
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
"""Padded lengths for inference, one compilation each; longer sentences are padded to a multiple of the last."""
ROWS = (1, 8, 64)
"""Numbers of rows of partial batches for inference, also one compilation each."""
TOKENS_AT_A_TIME = 16_384
"""Maximum tokens in a batch for inference, padding included, to bound memory."""


class Batch(NamedTuple):
    """Sentences that are searched together, on the device. All arrays but scalars have one row per sentence."""

    rows: list[int | None]
    """Number of the sentence in each row; None where the row is free."""
    memory: Memory
    constraints: Any
    """Arrays of the sentences' own constraints, or None."""
    state: SearchState
    cache: Cache

    @property
    def taken(self) -> list[int]:
        """The rows with a sentence."""
        return [row for row, sentence in enumerate(self.rows) if sentence is not None]


@partial(jax.jit, static_argnums=1)
def start(
    graphdef: nnx.GraphDef,
    search: Search,
    params: Any,
    source: Int[Array, "B S"],
    prefix: Int[Array, "B P"],
    max_lengths: Int[Array, " B"],
    min_lengths: Int[Array, " B"],
    keys: Key[Array, "B K"] | None,
) -> tuple[Memory, SearchState, Cache]:
    """Read the sources, and start their searches; the cache has S slots, as outputs are about as long as sources."""
    model: Seq2Seq = nnx.merge(graphdef, params)
    batch_size, length = source.shape
    state = search.init(batch_size, max_lengths, min_lengths, prefix, keys)
    return model.remember(source), state, model.empty_cache(batch_size, search.num_hypotheses, length)


def search_batches(
    graphdef: nnx.GraphDef,
    search: Search,
    params: Any,
    batches: Sequence[Batch],
    make_processor: Callable[[Any, Any], LogitsProcessor] | None = None,
    shared: Any = None,
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Yield the number and the `SearchResult` (as arrays without the axis B) of each sentence as soon as it is done.

    Args:
        graphdef: structure of a `Seq2Seq`.
        search: of all batches.
        params: parameters of the model.
        batches: just started, of the same source length.
        make_processor: makes a batch's own processor from `shared` and `Batch.constraints`.
        shared: arrays that the constraints of all sentences share.
    """
    step, least_room = 0, batches[0].cache.slots
    batches = list(batches)
    while batches:
        room = max(least_room, round_up(step + 1))
        # The last batch has nothing to gain from eviction: it runs until its cache is full.
        is_last = len(batches) == 1 and len(batches[0].rows) <= MIN_ROWS
        step = room if is_last else min(step + STEPS_PER_SYNC, room)
        advanced = []
        for batch in batches:  # all are dispatched before the first is waited for
            cache = batch.cache if batch.cache.slots >= room else _lengthened(batch.cache, room)
            arrays = params, shared, batch.memory, batch.constraints, batch.state, cache
            state, cache, done, result = advance_batch(graphdef, search, make_processor, *arrays, step)
            advanced.append((batch._replace(state=state, cache=cache), done, result))
        batches = []
        for batch, done, result in advanced:
            is_over = np.asarray(done) | (step >= search.max_length)
            if any(is_over[row] for row in batch.taken):
                found = [np.asarray(part) for part in result]
                for row, sentence in enumerate(batch.rows):
                    if sentence is not None and is_over[row]:
                        yield sentence, tuple(part[row] for part in found)
            rows = [None if is_over[row] else sentence for row, sentence in enumerate(batch.rows)]
            batches.append(batch._replace(rows=rows))
        batches = _compacted(batches)


@partial(jax.jit, static_argnums=(1, 2), donate_argnums=(7, 8))
def advance_batch(
    graphdef: nnx.GraphDef,
    search: Search,
    make_processor: Callable[[Any, Any], LogitsProcessor] | None,
    params: Any,
    shared: Any,
    memory: Memory,
    constraints: Any,
    state: SearchState,
    cache: Cache,
    until: Int[Array, ""],
) -> tuple[SearchState, Cache, Bool[Array, " B"], SearchResult]:
    """Search on to `until` tokens; also returns which sentences are done, and the results so far."""
    model: Seq2Seq = nnx.merge(graphdef, params)
    if make_processor is not None:
        search = replace(search, processors=(*search.processors, make_processor(shared, constraints)))
    until = jnp.minimum(until, search.max_length)
    state, cache = search.advance(lambda tokens, cache: model.step(tokens, cache, memory), cache, state, until)
    return state, cache, state.is_done, search.result(state)


@partial(jax.jit, static_argnums=1)
def _lengthened(cache: Cache, slots: int) -> Cache:
    return cache.lengthened(slots)


def _compacted(batches: list[Batch]) -> list[Batch]:
    """The same sentences in as few batches as have room for them."""
    batches = sorted((b for b in batches if b.taken), key=lambda b: (len(b.rows), -len(b.taken)))
    while len(batches) > 1:
        *rest, donor = batches
        free = [len(batch.rows) - len(batch.taken) for batch in rest]
        if sum(free) < len(donor.taken):
            break
        batches = rest
        for i in sorted(range(len(rest)), key=lambda i: -free[i]):
            if free[i] and donor.taken:
                batches[i], donor = _moved(donor, batches[i])
        assert not donor.taken
    return [_moved(batch, None)[0] if len(batch.taken) <= MIN_ROWS < len(batch.rows) else batch for batch in batches]


def _moved(donor: Batch, receiver: Batch | None) -> tuple[Batch, Batch]:
    """Move sentences of `donor` to the free rows of `receiver` (default: a new batch of `MIN_ROWS`).

    Returns:
        The receiver with them, and the donor without.
    """
    own = [None] * MIN_ROWS if receiver is None else receiver.rows
    _, *to = donor if receiver is None else receiver
    free = [row for row, sentence in enumerate(own) if sentence is None]
    # Rows that stay free copy others, and end with them.
    received, left = list(own), list(donor.rows)
    index = np.arange(len(own))
    moves = np.zeros(len(own), bool)
    for target, row in zip(free, donor.taken, strict=False):
        received[target], left[row] = donor.rows[row], None
        index[target], moves[target] = row, True
    return Batch(received, *_gathered(tuple(donor[1:]), tuple(to), index, moves)), donor._replace(rows=left)


@jax.jit
def _gathered(donor: Any, receiver: Any, index: Int[Array, " R"], moves: Bool[Array, " R"]) -> Any:
    """Row r is row `index[r]` of `donor` where `moves[r]`, else of `receiver`."""

    def gather(donor: Array, receiver: Array) -> Array:
        if donor.ndim == 0:
            return donor
        moved = moves.reshape(-1, *[1] * (donor.ndim - 1))
        return jnp.where(moved, donor[index], receiver[index])

    return jax.tree.map(gather, donor, receiver)


def round_up(length: int) -> int:
    """The padded length of a sentence for inference."""
    return next((n for n in LENGTHS if n >= length), -(-length // LENGTHS[-1]) * LENGTHS[-1])


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[int, int, list[int]]]:
    """Group sentences into batches of one padded length.

    Args:
        lengths: length of each sentence.
        batch_size: maximum rows of a batch.

    Yields:
        (padded length, rows of the batch, indices of its sentences), shortest first.
    """
    groups: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(round_up(length), []).append(i)
    for length, members in sorted(groups.items()):
        most = max(1, min(batch_size, TOKENS_AT_A_TIME // length))
        for first in range(0, len(members), most):
            chosen = members[first : first + most]
            rows = next(n for n in sorted({min(size, most) for size in (*ROWS, most)}) if n >= len(chosen))
            yield length, rows, chosen


def padded(sentences: Sequence[Sequence[int]], rows: int, length: int) -> Int[np.ndarray, "B T"]:
    """Sentences as the first rows of an array, `PAD` elsewhere."""
    array = np.full((rows, length), PAD, np.int32)
    for row, sentence in enumerate(sentences):
        array[row, : len(sentence)] = sentence
    return array
