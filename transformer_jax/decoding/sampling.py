"""Sampling with temperature, top-k and top-p, and streaming: the tokens of one sentence as they are decoded."""

import numbers
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.decoding.constraints import LogitsProcessor
from transformer_jax.decoding.options import Temperature, TopP
from transformer_jax.decoding.search import Pick, Search, SearchResult, SearchState, StepFn
from transformer_jax.sharding import standard_numerics
from transformer_jax.system import NotNegative, Positive, UserError, check_value


@standard_numerics()
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

    `keys` holds one random key per sentence; sample k depends on that key and k alone, not on K or the batch.
    Log-probabilities, constrained by `processors`, are divided by `temperature`; then a token is drawn from the
    `top_k` likeliest (0: all), and of these from the smallest set with probability `top_p` (1: all).
    The other arguments are those of `beam_search`.

    Returns:
        Outputs in the order of drawing, which may repeat. Their scores have no length penalty.

    Raises:
        UserError: If L or `num_samples` is below 1, `temperature` is not above 0, `top_k` is negative, `top_p` is not
            in (0, 1], or `pad_id` is `eos_id`.
    """
    check_value("num_samples", num_samples, Positive)
    pick = sampler(temperature, top_k, top_p)
    search = Search(max_length, num_samples, num_samples, bos_id, eos_id, pad_id, tuple(processors), pick=pick)
    state = search.init(batch_size, max_lengths, min_lengths, prefix, keys_of_samples(keys, num_samples))
    return search.run(step_fn, cache, state)


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

    The tokens are those of `greedy_search` or, with a `key`, of `sample` with that key and one sample. The arguments
    are theirs for a batch of one; `limit` is the one entry of `max_lengths`. Pass a jitted `step_fn`: it is called once
    per token, outside any other jit. Pass the same processor objects every time: new ones recompile.

    Raises:
        UserError: At the first token, as `greedy_search` and `sample` do.
    """
    pick = None if key is None else sampler(temperature, top_k, top_p)
    search = Search(max_length, 1, 1, bos_id, eos_id, pad_id, tuple(processors), pick=pick)
    with standard_numerics():
        state = search.init(
            1,
            max_lengths=None if limit is None else jnp.array([limit], jnp.int32),
            min_lengths=min_length,
            prefix=None if prefix is None else prefix[None],
            keys=None if key is None else keys_of_samples(key[None], 1),
        )
    yield from search.stream(step_fn, cache, state)


@lru_cache  # equal samplers are one object, which a `Search` needs to compile once
def sampler(temperature: float, top_k: int, top_p: float) -> Pick:
    """Draw each token from the distribution after temperature, top-k and top-p, in this order.

    The draw depends on the sample's key and the step, and on nothing else.

    Raises:
        UserError: If `temperature` is not above 0 or out of range, `top_k` is negative or `top_p` is not in (0, 1].
    """
    _check_temperature(temperature)
    check_value("top_k", top_k, NotNegative)
    check_value("top_p", top_p, TopP)

    def pick(state: SearchState, allowed: Float[Array, "B K V"]) -> Int[Array, "B K"]:
        assert state.keys is not None, "samples need keys"
        logits = keep_top_p(keep_top_k(scale_temperature(allowed, temperature), top_k), top_p)

        def draw(key: Key[Array, ""], logits: Float[Array, " V"]) -> Int[Array, ""]:
            return jax.random.categorical(jax.random.fold_in(key, state.step), logits).astype(jnp.int32)

        return jax.vmap(jax.vmap(draw))(state.keys, logits)

    return pick


def keys_of_samples(keys: Key[Array, " B"], num_samples: int) -> Key[Array, "B K"]:
    """One key per sample from one per sentence; that of sample k does not depend on K."""
    numbers = jnp.arange(num_samples)
    return jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(numbers))(keys)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}, but must be above 0; for the likeliest tokens search greedily.")
    check_value("temperature", temperature, Temperature)


def scale_temperature(logits: Float[Array, "*rows V"], temperature: float) -> Float[Array, "*rows V"]:
    """Flatten (`temperature` above 1) or sharpen (below 1) the distribution; `temperature` must be above 0.

    Raises:
        UserError: if it is out of range.
    """
    if isinstance(temperature, numbers.Real):  # not traced
        _check_temperature(float(temperature))
    return logits / temperature


def keep_top_k(logits: Float[Array, "*rows V"], k: int) -> Float[Array, "*rows V"]:
    """Forbid (-inf) all but the `k` likeliest tokens, and those tied with the last of them; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, -jnp.inf, logits)


def keep_top_p(logits: Float[Array, "*rows V"], p: float) -> Float[Array, "*rows V"]:
    """Forbid (-inf) all but the smallest set of likeliest tokens with total probability `p` (nucleus sampling).

    The likeliest token and those tied with the last of the set always stay; `p` of 1 or more keeps all.
    """
    if p >= 1.0:
        return logits
    descending = -jnp.sort(-logits, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # The first always stays: rounding must not let its own 'probability before' reach a tiny p.
    inside = (before < p).at[..., 0].set(True)
    threshold = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < threshold, -jnp.inf, logits)
