"""A model behind the search: sentences of token ids in, hypotheses out, in order."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer_jax.data.collate import TOKENS_AT_A_TIME, batches_by_length, padded, round_up
from transformer_jax.data.tokenizers import BOS, PAD, SPECIAL_TOKENS, UNK, SpecialTokens
from transformer_jax.decoding import LogitsProcessor, forbid_sequences, no_repeat_ngram, renormalize, stream
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.scheduler import Plan, Sentences, search_in_lanes
from transformer_jax.nn import AttentionWeights, Cache, Memory, Seq2Seq
from transformer_jax.nn.losses import smoothed_cross_entropy
from transformer_jax.sharding import spread, workers
from transformer_jax.system.errors import UserError

BAD_WORDS = ((BOS,), (UNK,))
"""What a model with the special tokens of this package never produces, besides padding."""
USUAL_BEAM = 4
"""What batch sizes are meant for."""
MOST_LANES = 8
"""Batches of short sentences that are searched together, each making room for what is left of the others."""


class Hypothesis(NamedTuple):
    """One output of the search."""

    tokens: list[int]
    """Without the end of sentence."""
    score: float
    """What outputs are ranked by: the log-probability over the length penalty; without it for samples."""
    log_prob: float
    """The model's own log-probability, end of sentence included."""


class Guide(NamedTuple):
    """Constraints of a search that differ from sentence to sentence."""

    make_processor: Callable[[Any, Any], LogitsProcessor]
    """Makes the processor of a batch from the two below. Pass the same function every time: a new one compiles anew."""
    shared: Any
    """Arrays that all sentences share, in any structure."""
    sentences: Sequence[Any]
    """Arrays of each sentence, in one structure. In a batch they are stacked, and their first axis is padded with zeros
    to the length of the sources; sentences that only fill a batch up are zero throughout."""


class Asked(NamedTuple):
    """What is asked of the sentences of a lane, in this process's memory; the last rows may stand for none."""

    names: list[int]
    """Their places among all sentences."""
    source: Int[np.ndarray, "B S"]
    prefix: Int[np.ndarray, "B P"]
    limits: Int[np.ndarray, " B"]
    guide: Any

    def sentences(self, seed: int) -> Sentences:
        """The same for a device."""
        # A sentence draws by its place among all, not by its place in the lane.
        places = np.zeros(len(self.limits), np.int32)
        places[: len(self.names)] = self.names
        source, prefix, limits, guide = jax.device_put((self.source, self.prefix, self.limits, self.guide))
        return Sentences(source, prefix, limits, _keys(jax.random.key(seed), places), guide)


class Generator:
    """Searches for the outputs of an encoder-decoder model.

    Sentences are batched with others of like length, and masked from one another and from their padding, so what comes
    out for a sentence does not depend on what else is asked.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        *,
        batch_size: int = 64,
        max_positions: int | None = None,
        special_tokens: SpecialTokens = SPECIAL_TOKENS,
        bad_words: tuple[tuple[int, ...], ...] = BAD_WORDS,
        renormalizes: bool = False,
    ) -> None:
        """Make a generator of one model structure; parameters come with each call.

        Args:
            graphdef: of a `Seq2Seq`.
            batch_size: sentences at a time on each device, at most, with a beam of `USUAL_BEAM`; with others, as many
                hypotheses.
            max_positions: tokens that a sentence can have, where the model has a table of positions.
            special_tokens: of the target's vocabulary.
            bad_words: sequences of tokens that are never produced.
            renormalizes: whether the probabilities of what may be produced add up to 1.
        """
        self.graphdef = graphdef
        self.batch_size = batch_size
        self.max_positions = max_positions
        self.special_tokens = special_tokens
        self.bad_words = bad_words
        self.renormalizes = renormalizes

    def generate(
        self,
        params: Any,
        sources: Sequence[Sequence[int]],
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]] | None = None,
        *,
        guide: Guide | None = None,
    ) -> list[list[Hypothesis]]:
        """The `options.n_best` best hypotheses of each sentence, best first, or so many samples.

        Args:
            params: of the model; all devices of this process that hold them search.
            sources: token ids of each sentence, end of sentence included.
            options: of the search.
            prefixes: token ids that the outputs must begin with, one prefix a sentence; PAD where any may stand.
            guide: further constraints, sentence by sentence.

        Raises:
            UserError: if the model's outputs are not numbers, or a prefix is longer than its table of positions.
        """
        prefixes = [()] * len(sources) if prefixes is None else prefixes
        for prefix_of_one in prefixes:
            self._check_prefix(prefix_of_one)
        arrays = params, None if guide is None else guide.shared

        def search(arrays: Any, group: tuple[Plan, list[Asked]]) -> dict[int, list[Hypothesis]]:
            (params, shared), (plan, lanes) = arrays, group
            asked = [(lane.names, lane.sentences(options.seed)) for lane in lanes]
            found = search_in_lanes(plan, params, shared, asked)
            return {name: _hypotheses(result, options.n_best) for name, result in found}

        outputs: dict[int, list[Hypothesis]] = {}
        devices, at_once = workers(arrays)
        most = max(1, self.batch_size * USUAL_BEAM // (options.num_hypotheses * at_once))
        groups = list(self._groups(sources, options, prefixes, guide, most, devices * at_once))
        for found in spread(search, groups, arrays):
            outputs |= found
        return [outputs[i] for i in range(len(sources))]

    def _groups(
        self,
        sources: Sequence[Sequence[int]],
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]],
        guide: Guide | None,
        most: int,
        parts: int,
    ) -> Iterator[tuple[Plan, list[Asked]]]:
        """Some lanes of sentences of one padded length, with the plan of their search.

        A lane has `most` sentences at most, and the lanes of a length are in as many groups as `parts`, if they can be.
        The longest come first, lest all wait for them in the end.
        """
        lanes_of: dict[int, list[tuple[int, list[int]]]] = {}
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # what is alike ends together
        for length, rows, places in batches_by_length([len(sources[i]) for i in order], most):
            lanes_of.setdefault(length, []).append((rows, [order[place] for place in places]))
        for length, lanes in sorted(lanes_of.items(), reverse=True):
            together = max(1, min(MOST_LANES, TOKENS_AT_A_TIME // (lanes[0][0] * length), -(-len(lanes) // parts)))
            for first in range(0, len(lanes), together):
                group = lanes[first : first + together]
                # Shapes depend on the padded length alone, unless a prefix is longer: others would compile anew.
                longest_prefix = max(len(prefixes[i]) for _, chosen in group for i in chosen)
                width = max(length, round_up(longest_prefix))
                longest = self._limit(length, 0, options)
                if longest_prefix >= longest:
                    longest = self._limit(length, width, options)
                plan = Plan(
                    self.graphdef,
                    self.special_tokens,
                    self._processors(options),
                    self.renormalizes,
                    replace(options, seed=0),
                    longest,
                    None if guide is None else guide.make_processor,
                )
                asked = []
                for rows, chosen in group:
                    limits = np.ones(rows, np.int32)
                    limits[: len(chosen)] = [self._limit(len(sources[i]), len(prefixes[i]), options) for i in chosen]
                    source = padded([sources[i] for i in chosen], rows, length)
                    prefix = padded([prefixes[i] for i in chosen], rows, width)
                    stacked = None if guide is None else _stacked([guide.sentences[i] for i in chosen], rows, length)
                    asked.append(Asked(chosen, source, prefix, limits, stacked))
                yield plan, asked

    def stream(
        self, params: Any, source: Sequence[int], options: SearchOptions, prefix: Sequence[int] = ()
    ) -> Iterator[int]:
        """The tokens of one sentence, each as soon as it is known: greedy, or drawn if there is a temperature.

        Raises:
            UserError: if the prefix is longer than the model's table of positions.
        """
        self._check_prefix(prefix)
        memory = _remember(self.graphdef, params, padded([source], 1, round_up(len(source))))
        limit = self._limit(len(source), len(prefix), options)
        max_length = round_up(limit)
        draws = options.temperature > 0
        tokens = stream(
            lambda tokens, cache: _step(self.graphdef, params, tokens, cache, memory),
            nnx.merge(self.graphdef, params).empty_cache(1, 1, max_length),
            max_length=max_length,
            limit=limit,
            bos_id=self.special_tokens.bos,
            eos_id=self.special_tokens.eos,
            pad_id=PAD,
            min_length=options.min_length + 1,
            prefix=jnp.array(prefix, jnp.int32) if prefix else None,
            processors=(*self._processors(options), renormalize) if self.renormalizes else self._processors(options),
            key=jax.random.fold_in(jax.random.key(options.seed), 0) if draws else None,
            temperature=options.temperature if draws else 1.0,
            top_k=options.top_k,
            top_p=options.top_p,
        )
        return (token for token in tokens if token != self.special_tokens.eos)

    def score(
        self, params: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[Float[np.ndarray, " T"]]:
        """The log-probability of each token of each target; all end with the end of sentence."""
        scores: list[Float[np.ndarray, " T"]] = [np.zeros(0, np.float32)] * len(sources)
        lengths = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]

        def score(params: Any, batch: tuple[int, int, list[int]]) -> tuple[list[int], Float[np.ndarray, "B T"]]:
            length, rows, chosen = batch
            source = padded([sources[i] for i in chosen], rows, length)
            labels = padded([targets[i] for i in chosen], rows, length)
            return chosen, np.asarray(_score(self.graphdef, self.special_tokens.bos, params, source, labels))

        batches = list(batches_by_length(lengths, self.batch_size))
        for chosen, found in spread(score, batches, params):
            for row, i in enumerate(chosen):
                scores[i] = found[row, : len(targets[i])]
        return scores

    def attention(self, params: Any, source: Sequence[int], target: Sequence[int]) -> AttentionWeights:
        """Every attention weight of one sentence pair; both end with the end of sentence. No batch axis."""
        s, t = len(source), len(target)
        sides = padded([source], 1, round_up(s)), padded([[self.special_tokens.bos, *target[:-1]]], 1, round_up(t))
        encoder, decoder, cross = (np.asarray(part)[0] for part in _attention(self.graphdef, params, *sides))
        return AttentionWeights(encoder[..., :s, :s], decoder[..., :t, :t], cross[..., :t, :s])

    def _processors(self, options: SearchOptions) -> tuple[LogitsProcessor, ...]:
        return _make_processors(self.bad_words, options.no_repeat_ngram)

    def _check_prefix(self, prefix: Sequence[int]) -> None:
        if self.max_positions is not None and len(prefix) >= self.max_positions:
            raise UserError(
                f"A prefix has {len(prefix)} tokens, but outputs of this model at most {self.max_positions - 1} "
                "(config.model.max_positions); shorten it."
            )

    def _limit(self, source_length: int, prefix_length: int, options: SearchOptions) -> int:
        """Most tokens of an output, end of sentence included, for a source whose length includes it too."""
        limits = [source_length + options.max_extra_tokens, self.max_positions]
        if options.max_length is not None:
            limits.append(options.max_length + 1)
        return max(min(limit for limit in limits if limit is not None), prefix_length + 1)


def _stacked(sentences: Sequence[Any], rows: int, length: int) -> Any:
    """The arrays of a batch, a row each, from those of its sentences; see `Guide`."""

    def stack(*leaves: Any) -> np.ndarray:
        first = np.asarray(leaves[0])
        if first.ndim == 0:
            return np.pad(np.array(leaves), (0, rows - len(leaves)))
        stacked = np.zeros((rows, length, *first.shape[1:]), first.dtype)
        for row, leaf in enumerate(leaves):
            stacked[row, : len(leaf)] = leaf
        return stacked

    return jax.tree.map(stack, *sentences)


@lru_cache  # the same objects each time, so that nothing need compile anew
def _make_processors(bad_words: tuple[tuple[int, ...], ...], ngram: int) -> tuple[LogitsProcessor, ...]:
    never = forbid_sequences(bad_words)
    return (never, no_repeat_ngram(ngram)) if ngram > 0 else (never,)


def _hypotheses(found: tuple[np.ndarray, ...], n_best: int) -> list[Hypothesis]:
    """The outputs of one sentence.

    Raises:
        UserError: if they are not numbers, or there are none.
    """
    tokens, scores, log_probs, lengths = found
    outputs = [
        Hypothesis(tokens[k, : lengths[k] - 1].tolist(), float(scores[k]), float(log_probs[k]))
        for k in range(n_best)
        if lengths[k] > 0
    ]
    if not outputs or any(math.isnan(hypothesis.log_prob) for hypothesis in outputs):
        raise UserError("The model's probabilities are not numbers; its parameters must be damaged.")
    return outputs


@jax.jit
def _keys(root: Key[Array, ""], places: Int[Array, " B"]) -> Key[Array, " B"]:
    return jax.vmap(partial(jax.random.fold_in, root))(places)


@jax.jit
def _remember(graphdef: nnx.GraphDef, params: Any, source: Int[Array, "B S"]) -> Memory:
    return nnx.merge(graphdef, params).remember(source)


@jax.jit
def _step(
    graphdef: nnx.GraphDef, params: Any, tokens: Int[Array, "B K"], cache: Cache, memory: Memory
) -> tuple[Float[Array, "B K V"], Cache]:
    return nnx.merge(graphdef, params).step(tokens, cache, memory)


@partial(jax.jit, static_argnums=1)
def _score(
    graphdef: nnx.GraphDef, start: int, params: Any, source: Int[Array, "B S"], labels: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    model: Seq2Seq = nnx.merge(graphdef, params)
    target = jnp.concatenate([jnp.full_like(labels[:, :1], start), labels[:, :-1]], axis=1)
    segments = (labels != PAD).astype(jnp.int32)
    return -smoothed_cross_entropy(model(source, target, target_segments=segments), labels)


@jax.jit
def _attention(
    graphdef: nnx.GraphDef, params: Any, source: Int[Array, "B S"], target: Int[Array, "B T"]
) -> AttentionWeights:
    return nnx.merge(graphdef, params).attention_weights(source, target)
