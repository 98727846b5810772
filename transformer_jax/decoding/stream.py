"""The tokens of one sentence as they come."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.decoding.constraints import Constraints, LogitsProcessor, make_constraints
from transformer_jax.decoding.core import SearchState, StepFn, grow_in_place, initial_state, search_step
from transformer_jax.decoding.options import length_weights
from transformer_jax.decoding.sampling import pick_likeliest, sampler


def stream(
    step_fn: StepFn,
    cache: Any,
    *,
    max_length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    limit: int | None = None,
    min_length: int = 0,
    prefix: Int[Array, " P"] | None = None,
    processors: Sequence[LogitsProcessor] = (),
    key: Key[Array, ""] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """Yield the tokens of one sentence, EOS included, each as soon as it is known.

    They are those of `greedy_search` or, with a `key`, of `sample` with that key and one sample; the arguments are
    theirs, for a batch of one, where `limit` is the one entry of `max_lengths`. Pass a jitted `step_fn`: it runs once a
    token, outside any other jit. Pass the same processor objects every time: new ones compile anew.

    Raises:
        UserError: At the first token, as `greedy_search` and `sample` do.
    """
    constraints = make_constraints(
        1,
        max_length,
        max_lengths=None if limit is None else jnp.array([limit]),
        min_lengths=min_length,
        prefix=None if prefix is None else prefix[None],
        pad_id=pad_id,
        eos_id=eos_id,
    )
    state = initial_state(1, 1, max_length, bos_id=bos_id, pad_id=pad_id)
    keys = None if key is None else key[None]
    while True:
        logits, cache = step_fn(state.newest, cache)
        state = _step(
            state,
            logits,
            constraints,
            keys,
            processors=tuple(processors),
            eos_id=eos_id,
            pad_id=pad_id,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        token = int(state.newest[0, 0])
        yield token
        if token == eos_id:
            return


@partial(jax.jit, static_argnames=("processors", "eos_id", "pad_id", "temperature", "top_k", "top_p"))
def _step(
    state: SearchState,
    logits: Float[Array, "1 1 V"],
    constraints: Constraints,
    keys: Key[Array, " 1"] | None,
    *,
    processors: tuple[LogitsProcessor, ...],
    eos_id: int,
    pad_id: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> SearchState:
    pick = pick_likeliest if keys is None else sampler(keys, 1, temperature, top_k, top_p)
    # Nobody sees the score, so any weights will do.
    weights = length_weights(state.alive.tokens.shape[-1], 0.0)
    grow = grow_in_place(pick, weights=weights, eos_id=eos_id)
    return search_step(state, logits, constraints, processors, grow, eos_id=eos_id, pad_id=pad_id)[0]
