"""Beam search (section 6.1): the public functions first, then the `Search` that runs them and everything else.

The model is a pure `step_fn(tokens, cache) -> (logits, cache)`. `tokens: Int[B K]` is the newest token of each of K
hypotheses of B sentences, `logits: Float[B K V]` are those of the next token, and `cache` is any pytree whose leaves
are `[B, K, ...]`, reordered along with the hypotheses, or scalars, left alone; or it has a method
`reordered(parents: Int[B K])`. `step_fn` closes over what does not follow hypotheses, such as the encoder's output.

The functions are pure and meant to run under the caller's `jax.jit`. All lengths count the EOS, and every output has
one: at its sentence's limit it must end. A sentence's result never depends on the rest of its batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from transformer_jax.decoding.constraints import LogitsProcessor, constrain, renormalize, two_stage_top_k
from transformer_jax.decoding.options import PAPER, Alpha, Conventions, NumHypotheses, length_weights
from transformer_jax.sharding import standard_numerics
from transformer_jax.system import NotNumbersError, Positive, UserError, check_value

Tree = TypeVar("Tree")
StepFn = Callable[[Int[Array, "B K"], Any], tuple[Float[Array, "B K V"], Any]]
"""`(tokens, cache) -> (logits, cache)`: the model, a pure function of the newest tokens and its cache."""


class SearchResult(NamedTuple):
    """K outputs of each sentence."""

    tokens: Int[Array, "B K L"]
    """Without BOS, with EOS; PAD after it."""
    scores: Float[Array, "B K"]
    """Ranking scores: log-probability, less soft penalties of processors, over the length penalty.

    -inf where a sentence has fewer than K possible outputs; such a slot has length 0 and holds PAD.
    """
    log_probs: Float[Array, "B K"]
    """The model's own log-probability of the output, before any processor, temperature, filter or penalty."""
    lengths: Int[Array, "B K"]


@standard_numerics()
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
        step_fn: The model; see the module's docstring.
        cache: Its initial cache, leaves `[B, K, ...]` or scalars.
        batch_size: B.
        max_length: L, the static length of the result.
        beam_size: K. A beam of one is `greedy_search`, and ends at the first EOS that it prefers.
        bos_id: First token that the model reads.
        eos_id: Ends a hypothesis.
        pad_id: Fills up the result; never produced.
        max_lengths: Limit of each sentence, clipped to 1..L; default: L.
        min_lengths: No hypothesis ends with fewer tokens.
        alpha: Exponent of the length penalty.
        prefix: Tokens that every output begins with, PAD after the last; they count in its score.
        processors: Further constraints; see `constraints.py`.
        n_best: How many of the K outputs to return; default: all.
        conventions: Where to follow the search of another system. By default the search stops once no alive
            hypothesis can beat the last of the `n_best` ended ones, which does not change the result unless a
            processor raises a log-probability above 0.

    Returns:
        The best outputs, best first, no two of a sentence the same.

    Raises:
        UserError: If L or K is below 1, `n_best` is not within 1..K, or `pad_id` is `eos_id`.
    """
    check_value("beam_size", beam_size, NumHypotheses)
    n_best = beam_size if n_best is None else n_best
    if not 1 <= n_best <= beam_size:
        raise UserError(f"n_best is {n_best}, but must be from 1 to the beam size, {beam_size}.")
    search = Search(
        max_length, beam_size, n_best, bos_id, eos_id, pad_id, tuple(processors), alpha=alpha, conventions=conventions
    )
    return search.run(step_fn, cache, search.init(batch_size, max_lengths, min_lengths, prefix))


@standard_numerics()
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
    """Take the likeliest token at each step: `beam_search` with a beam of one, and its arguments."""
    search = Search(max_length, 1, 1, bos_id, eos_id, pad_id, tuple(processors), alpha=alpha)
    return search.run(step_fn, cache, search.init(batch_size, max_lengths, min_lengths, prefix))


class Hypotheses(NamedTuple):
    """K hypotheses of each sentence. A slot whose score is -inf is empty."""

    tokens: Int[Array, "B K L"]
    """Without BOS; PAD after the last."""
    log_probs: Float[Array, "B K"]
    """Sum of the model's own log-probabilities."""
    scores: Float[Array, "B K"]
    """Ranking scores: sum of constrained log-probabilities, over the length penalty once ended."""


class SearchState(NamedTuple):
    """A search after `step` tokens. All arrays but `step` have one row per sentence."""

    step: Int[Array, ""]
    newest: Int[Array, "B K"]
    """Last token of each alive hypothesis, the model's next input."""
    alive: Hypotheses
    ended: Hypotheses
    """The K best that have ended."""
    max_lengths: Int[Array, " B"]
    """From 1 to L."""
    min_lengths: Int[Array, " B"]
    prefix: Int[Array, "B L"]
    """Tokens that every hypothesis begins with; PAD where it is free."""
    keys: Key[Array, "B K"] | None
    """Random key of each sample; None where nothing is drawn."""

    @property
    def is_done(self) -> Bool[Array, " B"]:
        """Whether a sentence has no alive hypothesis left. Empty slots stay empty, so its result is final."""
        return ~jnp.any(self.alive.scores > -jnp.inf, axis=1)


Pick = Callable[[SearchState, Float[Array, "B K V"]], Int[Array, "B K"]]
"""`(state, allowed) -> tokens`: one next token for each hypothesis, given constrained log-probabilities."""


@dataclass(frozen=True)
class Search:
    """The static half of a search, and its driver; hashable. `UserError` if a field is out of range."""

    max_length: int
    num_hypotheses: int
    n_best: int
    bos_id: int
    eos_id: int
    pad_id: int
    processors: tuple[LogitsProcessor, ...] = ()
    renormalizes: bool = False
    """Make the probabilities of allowed tokens add up to 1; some conventions do so too."""
    alpha: float = 0.0
    conventions: Conventions = PAPER
    pick: Pick | None = None
    """Makes every hypothesis a search of its own that adds the token picked; default: beam search."""

    def __post_init__(self) -> None:
        check_value("max_length", self.max_length, Positive)
        check_value("alpha", self.alpha, Alpha)
        if self.pad_id == self.eos_id:
            raise UserError(f"pad_id and eos_id are both {self.pad_id}, but must differ to mark where an output ends.")

    def run(self, step_fn: StepFn, cache: Any, state: SearchState) -> SearchResult:
        """Search until every sentence is done."""
        return self.result(self.advance(step_fn, cache, state, self.max_length)[0])

    def init(
        self,
        batch_size: int,
        max_lengths: Int[Array, " B"] | None = None,
        min_lengths: Int[Array, " B"] | int = 0,
        prefix: Int[Array, "B P"] | None = None,
        keys: Key[Array, "B K"] | None = None,
    ) -> SearchState:
        """The state before the first token; arguments as of `beam_search`, and a key per sample."""
        slots = (batch_size, self.num_hypotheses)
        no_tokens = jnp.full((*slots, self.max_length), self.pad_id, jnp.int32)
        zeros, empty = jnp.zeros(slots), jnp.full(slots, -jnp.inf, jnp.float32)
        # A beam starts from one hypothesis: from K copies, it would keep K copies.
        is_alive = jnp.array([k == 0 or self.pick is not None for k in range(self.num_hypotheses)])
        limits = jnp.full((batch_size,), self.max_length if max_lengths is None else max_lengths, jnp.int32)
        forced = jnp.full((batch_size, self.max_length), self.pad_id, jnp.int32)
        if prefix is not None:
            forced = forced.at[:, : prefix.shape[1]].set(jnp.asarray(prefix, jnp.int32)[:, : self.max_length])
        return SearchState(
            step=jnp.zeros((), jnp.int32),
            newest=jnp.full(slots, self.bos_id, jnp.int32),
            alive=Hypotheses(no_tokens, zeros, jnp.where(is_alive, zeros, empty)),
            ended=Hypotheses(no_tokens, empty, empty),
            max_lengths=jnp.clip(limits, 1, self.max_length),
            min_lengths=jnp.broadcast_to(jnp.asarray(min_lengths, jnp.int32), (batch_size,)),
            prefix=forced,
            keys=keys,
        )

    def advance(
        self, step_fn: StepFn, cache: Any, state: SearchState, until: int | Int[Array, ""]
    ) -> tuple[SearchState, Any]:
        """Search on to `until` tokens, or until every sentence is done; `cache` must have room for them."""
        weights = length_weights(self.max_length, self.alpha, self.conventions.length_penalty)

        def is_unfinished(carry: tuple[SearchState, Any]) -> Bool[Array, ""]:
            return (carry[0].step < until) & ~jnp.all(carry[0].is_done)

        def body(carry: tuple[SearchState, Any]) -> tuple[SearchState, Any]:
            state, cache = carry
            logits, cache = step_fn(state.newest, cache)
            state, parents = self.step(state, logits, weights)
            return state, cache if parents is None else _reordered(cache, parents)

        return jax.lax.while_loop(is_unfinished, body, (state, cache))

    def stream(self, step_fn: StepFn, cache: Any, state: SearchState) -> Iterator[int]:
        """Yield one hypothesis of one sentence, EOS included, outside any jit; `UserError` if outputs are NaN."""
        for _ in range(self.max_length):
            with standard_numerics():
                logits, cache = step_fn(state.newest, cache)
                state = _jitted_step(self, state, logits)
                token, log_prob = jax.device_get((state.newest[0, 0], state.alive.log_probs[0, 0]))
            if math.isnan(log_prob):
                raise NotNumbersError
            yield int(token)
            if token == self.eos_id:
                return

    def step(
        self, state: SearchState, logits: Float[Array, "B K V"], weights: Float[Array, " M"]
    ) -> tuple[SearchState, Int[Array, "B K"] | None]:
        """Expand alive hypotheses by one token. Also returns the slots that the new ones continue (None: their own)."""
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        renormalizes = self.renormalizes or self.conventions.renormalizes
        allowed = constrain(
            log_probs,
            state.alive.tokens,
            state.step,
            max_lengths=state.max_lengths,
            min_lengths=state.min_lengths,
            prefix=state.prefix,
            processors=(*self.processors, renormalize) if renormalizes else self.processors,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
        )
        if self.pick is not None or self.num_hypotheses == 1:
            return expand_in_place(self, state, log_probs, allowed, weights), None
        return expand_beam(self, state, log_probs, allowed, weights)

    def result(self, state: SearchState) -> SearchResult:
        """The `n_best` best outputs that have ended so far."""
        tokens, log_probs, scores = (part[:, : self.n_best] for part in state.ended)
        return SearchResult(tokens, scores, log_probs, jnp.sum(tokens != self.pad_id, axis=-1))


def expand_beam(
    search: Search,
    state: SearchState,
    log_probs: Float[Array, "B K V"],
    allowed: Float[Array, "B K V"],
    weights: Float[Array, " M"],
) -> tuple[SearchState, Int[Array, "B K"]]:
    """One step of beam search: the 2K best successors compete, for the K ended slots if they end, else for the K alive.

    At most K end (one per hypothesis), so K are left to stay alive.
    """
    conventions, beam_size = search.conventions, search.num_hypotheses
    is_forced = state.step + 1 >= state.max_lengths
    if conventions.free_forced_end:
        allowed = jnp.where(is_forced[:, None, None] & (allowed > -jnp.inf), 0.0, allowed)
    candidates, parents = _best_successors(state, log_probs, allowed)
    newest = candidates.tokens[:, :, state.step]
    ends = newest == search.eos_id
    in_beam = jnp.arange(ends.shape[1]) < beam_size

    uncounted = is_forced & conventions.all_count_at_limit
    penalised = candidates.scores * jnp.where(uncounted, weights[state.step], weights[state.step + 1])[:, None]
    counts = ends & (in_beam | conventions.ends_outside_beam)
    ending = candidates._replace(scores=jnp.where(counts, penalised, -jnp.inf))
    # Older ones first: of equals they stay, and an empty slot is never filled by another empty one.
    pool = Hypotheses(*(jnp.concatenate(pair, axis=1) for pair in zip(state.ended, ending, strict=True)))
    ended = _gather(pool, jax.lax.top_k(pool.scores, beam_size)[1])

    # Whatever stays alive here is forced to end by the next step.
    at_limit = (state.step + 2 >= state.max_lengths)[:, None] & conventions.all_count_at_limit
    stays = ~ends & (in_beam | ~at_limit)
    staying = candidates._replace(scores=jnp.where(stays, candidates.scores, -jnp.inf))
    chosen = jax.lax.top_k(staying.scores, beam_size)[1]
    alive = _gather(staying, chosen)
    stops = _should_stop(search, state, alive, ended, weights)[:, None] & ~at_limit
    alive = alive._replace(scores=jnp.where(stops, -jnp.inf, alive.scores))
    newest, parents = (jnp.take_along_axis(part, chosen, axis=1) for part in (newest, parents))
    return state._replace(step=state.step + 1, newest=newest, alive=alive, ended=ended), parents


def expand_in_place(
    search: Search,
    state: SearchState,
    log_probs: Float[Array, "B K V"],
    allowed: Float[Array, "B K V"],
    weights: Float[Array, " M"],
) -> SearchState:
    """One step of greedy search or sampling: every hypothesis adds the token that `search.pick` picks, in its slot."""
    picked = (search.pick or pick_likeliest)(state, allowed)
    log_prob, score = (
        jnp.take_along_axis(values, picked[..., None], axis=-1)[..., 0]
        for values in (log_probs, _successor_scores(state.alive, allowed))
    )
    grown = Hypotheses(state.alive.tokens.at[:, :, state.step].set(picked), state.alive.log_probs + log_prob, score)
    ends = picked == search.eos_id
    just_ended = ends & (score > -jnp.inf)
    ended = Hypotheses(
        tokens=jnp.where(just_ended[..., None], grown.tokens, state.ended.tokens),
        log_probs=jnp.where(just_ended, grown.log_probs, state.ended.log_probs),
        scores=jnp.where(just_ended, score * weights[state.step + 1], state.ended.scores),
    )
    alive = grown._replace(scores=jnp.where(ends, -jnp.inf, score))
    return state._replace(step=state.step + 1, newest=picked, alive=alive, ended=ended)


def pick_likeliest(state: SearchState, allowed: Float[Array, "B K V"]) -> Int[Array, "B K"]:
    """The likeliest token of each hypothesis; the lowest id among equals."""
    return two_stage_top_k(allowed, 1)[1][..., 0].astype(jnp.int32)


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
    parent = _gather(state.alive, parents)
    candidates = Hypotheses(parent.tokens.at[:, :, state.step].set(tokens), parent.log_probs + own, scores)
    return candidates, parents


def _should_stop(
    search: Search, state: SearchState, alive: Hypotheses, ended: Hypotheses, weights: Float[Array, " M"]
) -> Bool[Array, " B"]:
    """Whether a sentence's search stops here, by the stop rule of the conventions."""
    rule, best, worst = search.conventions.stop, jnp.max(alive.scores, axis=1), ended.scores[:, -1]
    if rule == "full_or_best":
        rule = "full" if search.alpha else "bound"
    if rule == "bound":
        # Sums of log-probabilities only fall, and the length penalty is monotone in the length, so the best score that
        # is still attainable is at the next length or the last (for negative sums and positive alpha, the last).
        bound = jnp.maximum(best * weights[state.step + 2], best * weights[state.max_lengths])
        return bound <= ended.scores[:, search.n_best - 1]
    if rule == "estimate":
        return best * weights[state.step + 1] <= worst
    return worst > -jnp.inf if rule == "full" else jnp.full(len(worst), False)


def _successor_scores(alive: Hypotheses, allowed: Float[Array, "B K V"]) -> Float[Array, "B K V"]:
    # Not only a sum: a model may return anything for an empty slot, NaN included.
    scores = alive.scores[..., None]
    return jnp.where(scores > -jnp.inf, scores + allowed, -jnp.inf)


@partial(jax.jit, static_argnums=0)
def _jitted_step(search: Search, state: SearchState, logits: Float[Array, "1 1 V"]) -> SearchState:
    # The length penalty cannot change a single hypothesis's tokens.
    return search.step(state, logits, length_weights(search.max_length, 0.0))[0]


def _gather(tree: Tree, slots: Int[Array, "B C"]) -> Tree:
    """Gather `slots` of axis 1 of every leaf `[B, K, ...]` of a pytree; scalars stay."""
    return jax.tree.map(lambda leaf: leaf if jnp.ndim(leaf) == 0 else jax.vmap(lambda x, i: x[i])(leaf, slots), tree)


def _reordered(cache: Any, parents: Int[Array, "B K"]) -> Any:
    """The cache of the hypotheses that continue those in slots `parents`."""
    return cache.reordered(parents) if hasattr(cache, "reordered") else _gather(cache, parents)
