"""A model and its search: sentences of token ids in, hypotheses out, in order."""

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

from transformer_jax.data import BOS, PAD, SPECIAL_TOKENS, UNK, SpecialTokens
from transformer_jax.decoding.constraints import LogitsProcessor, forbid_sequences, no_repeat_ngram
from transformer_jax.decoding.options import SearchOptions, conventions_named
from transformer_jax.decoding.sampling import keys_of_samples, sampler
from transformer_jax.decoding.scheduler import (
    TOKENS_AT_A_TIME,
    Batch,
    batches_by_length,
    padded,
    round_up,
    search_batches,
    start,
)
from transformer_jax.decoding.search import Search
from transformer_jax.nn import AttentionWeights, Cache, Memory, Seq2Seq
from transformer_jax.nn.losses import smoothed_cross_entropy
from transformer_jax.sharding import spread, standard_numerics, workers
from transformer_jax.system import NotNumbersError, UserError
from transformer_jax.system.output import Report

BAD_WORDS = ((BOS,), (UNK,))
"""Sequences that a model with the special tokens of this package never produces, besides padding."""
USUAL_BEAM = 4
"""The beam that batch sizes refer to."""
MAX_BATCHES = 8
"""Most batches of short sentences that are searched, and compacted, together."""

Group = tuple[Search, int, int, list[tuple[int, list[int]]]]
"""A search, the padded lengths of its sources and prefixes, and the rows and sentences of each of its batches."""


class Hypothesis(NamedTuple):
    """One output of the search."""

    tokens: list[int]
    """Without the end of sentence."""
    score: float
    """Ranking score: the log-probability over the length penalty; for samples without the penalty."""
    log_prob: float
    """The model's own log-probability, end of sentence included."""


class SentenceConstraints(NamedTuple):
    """Constraints of a search that differ from sentence to sentence."""

    make_processor: Callable[[Any, Any], LogitsProcessor]
    """Makes the processor of a batch from `shared` and its stacked `sentences`. Pass the same function every time: a
    new one recompiles."""
    shared: Any
    """Arrays that all sentences share, a pytree."""
    sentences: Sequence[Any]
    """Arrays of each sentence, pytrees of one structure. A batch stacks them, with their first axis padded with zeros
    to the length of the sources; rows without a sentence are zero."""


class Generator:
    """Searches for the outputs of an encoder-decoder model.

    Sentences are batched with others of similar length, and masked from one another and from their padding, so the
    outputs of a sentence do not depend on the others.
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
            graphdef: structure of a `Seq2Seq`.
            batch_size: sentences at a time on each device, at most, with a beam of `USUAL_BEAM`; with other beams, the
                same number of hypotheses.
            max_positions: most tokens of a sentence, where the model has a table of positions.
            special_tokens: special-token ids of the target vocabulary.
            bad_words: sequences of tokens that are never produced.
            renormalizes: whether the probabilities of allowed tokens add up to 1.
        """
        self.graphdef = graphdef
        self.batch_size = batch_size
        self.max_positions = max_positions
        self.special_tokens = special_tokens
        self.bad_words = bad_words
        self.renormalizes = renormalizes

    @standard_numerics()
    def generate(
        self,
        params: Any,
        sources: Sequence[Sequence[int]],
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]] | None = None,
        *,
        constraints: SentenceConstraints | None = None,
        places: Sequence[int] | None = None,
        report: Report | None = None,
    ) -> list[list[Hypothesis]]:
        """The `options.n_best` best hypotheses of each sentence, best first, or as many samples.

        Args:
            params: parameters of the model; all devices of this process that hold them search.
            sources: token ids of each sentence, end of sentence included.
            options: how to search.
            prefixes: token ids that the outputs must begin with, one prefix per sentence; PAD where any token may
                stand.
            constraints: further constraints, sentence by sentence.
            places: from 0, that of each sentence among all, where these are a part; samples depend on it.
            report: called as sentences are finished.

        Raises:
            UserError: if the model's outputs are not numbers, or a prefix is longer than its table of positions.
        """
        prefixes = [()] * len(sources) if prefixes is None else prefixes
        for prefix_of_one in prefixes:
            self._check_prefix(prefix_of_one)
        limits = [self._limit(len(s), len(p), options) for s, p in zip(sources, prefixes, strict=True)]
        make_processor = None if constraints is None else constraints.make_processor
        arrays = params, None if constraints is None else constraints.shared

        def begin(params: Any, search: Search, length: int, width: int, rows: int, numbers: list[int]) -> Batch:
            """A batch of the sentences of these numbers, in the first of `rows` rows."""
            source = padded([sources[i] for i in numbers], rows, length)
            prefix = padded([prefixes[i] for i in numbers], rows, width)
            max_lengths, min_lengths = np.ones(rows, np.int32), np.full(rows, options.min_length, np.int32)
            max_lengths[: len(numbers)] = [limits[i] for i in numbers]
            own = None if constraints is None else _stacked([constraints.sentences[i] for i in numbers], rows, length)
            keys = None
            if options.temperature > 0:
                # A sentence draws by its place among all, not by its row.
                drawn = np.zeros(rows, np.int32)
                drawn[: len(numbers)] = [i if places is None else places[i] for i in numbers]
                keys = _keys(jax.random.key(options.seed), drawn, search.num_hypotheses)
            inputs = jax.device_put((source, prefix, max_lengths, min_lengths))
            memory, state, cache = start(self.graphdef, search, params, *inputs, keys)
            return Batch([*numbers, *[None] * (rows - len(numbers))], memory, jax.device_put(own), state, cache)

        def run(arrays: Any, group: Group) -> dict[int, list[Hypothesis]]:
            (params, shared), (search, length, width, members) = arrays, group
            batches = [begin(params, search, length, width, rows, numbers) for rows, numbers in members]
            found = {}
            for number, result in search_batches(self.graphdef, search, params, batches, make_processor, shared):
                found[number] = _hypotheses(result, options.n_best)
                if report is not None:
                    report(1)
            return found

        outputs: dict[int, list[Hypothesis]] = {}
        devices, at_once = workers(arrays)
        most = max(1, self.batch_size * USUAL_BEAM // (options.num_hypotheses * at_once))
        groups = list(self._groups(sources, options, prefixes, most, devices * at_once))
        for found in spread(run, groups, arrays):
            outputs |= found
        return [outputs[i] for i in range(len(sources))]

    def _groups(
        self,
        sources: Sequence[Sequence[int]],
        options: SearchOptions,
        prefixes: Sequence[Sequence[int]],
        most: int,
        parts: int,
    ) -> Iterator[Group]:
        """Yield the batches that are searched together.

        A batch has `most` sentences at most, and the batches of one length are in at least `parts` groups, if possible.
        The longest come first, so that no worker starts the longest search last.
        """
        batches_of: dict[int, list[tuple[int, list[int]]]] = {}
        order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # similar sentences end together
        for length, rows, places in batches_by_length([len(sources[i]) for i in order], most):
            batches_of.setdefault(length, []).append((rows, [order[place] for place in places]))
        for length, batches in sorted(batches_of.items(), reverse=True):
            together = max(1, min(MAX_BATCHES, TOKENS_AT_A_TIME // (batches[0][0] * length), -(-len(batches) // parts)))
            for first in range(0, len(batches), together):
                group = batches[first : first + together]
                # Shapes depend on the padded length alone, unless a prefix is longer: others would recompile.
                longest_prefix = max(len(prefixes[i]) for _, chosen in group for i in chosen)
                width = max(length, round_up(longest_prefix))
                max_length = self._limit(length, 0, options)
                if longest_prefix >= max_length:
                    max_length = self._limit(length, width, options)
                yield self._search(max_length, options), length, width, group

    @standard_numerics()
    def stream(
        self, params: Any, source: Sequence[int], options: SearchOptions, prefix: Sequence[int] = ()
    ) -> Iterator[int]:
        """The tokens of one sentence, each as soon as it is known: greedy, or drawn if there is a temperature.

        Raises:
            UserError: if the model's outputs are not numbers, or the prefix is longer than its table of positions.
        """
        self._check_prefix(prefix)
        memory = _remember(self.graphdef, params, padded([source], 1, round_up(len(source))))
        limit = self._limit(len(source), len(prefix), options)
        max_length = round_up(limit)
        search = self._search(max_length, replace(options, beam_size=1, n_best=1))
        state = search.init(
            1,
            max_lengths=jnp.array([limit]),
            min_lengths=options.min_length,
            prefix=jnp.array([prefix], jnp.int32) if prefix else None,
            keys=_keys(jax.random.key(options.seed), np.zeros(1, np.int32), 1) if options.temperature > 0 else None,
        )
        cache = nnx.merge(self.graphdef, params).empty_cache(1, 1, max_length)
        step_fn = partial(_step, self.graphdef, params, memory)
        return (token for token in search.stream(step_fn, cache, state) if token != self.special_tokens.eos)

    def score(
        self,
        params: Any,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        report: Report | None = None,
    ) -> list[Float[np.ndarray, " T"]]:
        """The log-probability of each token of each target; sources and targets include the end of sentence.

        `report` is called as batches are finished.
        """
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
            if report is not None:
                report(len(chosen))
        return scores

    @standard_numerics()
    def attention(self, params: Any, source: Sequence[int], target: Sequence[int]) -> AttentionWeights:
        """Every attention weight of one sentence pair, end of sentence included; no batch axis."""
        s, t = len(source), len(target)
        sides = padded([source], 1, round_up(s)), padded([[self.special_tokens.bos, *target[:-1]]], 1, round_up(t))
        encoder, decoder, cross = (np.asarray(part)[0] for part in _attention(self.graphdef, params, *sides))
        return AttentionWeights(encoder[..., :s, :s], decoder[..., :t, :t], cross[..., :t, :s])

    def _search(self, max_length: int, options: SearchOptions) -> Search:
        search = Search(
            max_length,
            options.num_hypotheses,
            options.n_best,
            bos_id=self.special_tokens.bos,
            eos_id=self.special_tokens.eos,
            pad_id=PAD,
            processors=_make_processors(self.bad_words, options.no_repeat_ngram),
            renormalizes=self.renormalizes,
        )
        if options.temperature > 0:
            return replace(search, pick=sampler(options.temperature, options.top_k, options.top_p))
        return replace(search, alpha=options.alpha, conventions=conventions_named(options.conventions))

    def _check_prefix(self, prefix: Sequence[int]) -> None:
        if self.max_positions is not None and len(prefix) >= self.max_positions:
            raise UserError(
                f"A prefix has {len(prefix)} tokens, but outputs of this model at most {self.max_positions - 1} "
                "(config.model.max_positions); shorten it."
            )

    def _limit(self, source_length: int, prefix_length: int, options: SearchOptions) -> int:
        """Most tokens of an output; a prefix that is longer stays whole."""
        limits = source_length + options.max_extra_tokens, self.max_positions, options.max_length
        return max(min(limit for limit in limits if limit is not None), prefix_length + 1)


def _stacked(sentences: Sequence[Any], rows: int, length: int) -> Any:
    """The arrays of a batch, one row per sentence; see `SentenceConstraints`."""

    def stack(*leaves: Any) -> np.ndarray:
        first = np.asarray(leaves[0])
        if first.ndim == 0:
            return np.pad(np.array(leaves), (0, rows - len(leaves)))
        stacked = np.zeros((rows, length, *first.shape[1:]), first.dtype)
        for row, leaf in enumerate(leaves):
            stacked[row, : len(leaf)] = leaf
        return stacked

    return jax.tree.map(stack, *sentences)


@lru_cache  # the same objects each time, so that nothing recompiles
def _make_processors(bad_words: tuple[tuple[int, ...], ...], ngram: int) -> tuple[LogitsProcessor, ...]:
    never = forbid_sequences(bad_words)
    return (never, no_repeat_ngram(ngram)) if ngram > 0 else (never,)


def _hypotheses(found: tuple[np.ndarray, ...], n_best: int) -> list[Hypothesis]:
    """The outputs of one sentence.

    Raises:
        UserError: if there are none, or their log-probabilities are not numbers.
    """
    tokens, scores, log_probs, lengths = found
    outputs = [
        Hypothesis(tokens[k, : lengths[k] - 1].tolist(), float(scores[k]), float(log_probs[k]))
        for k in range(n_best)
        if lengths[k] > 0
    ]
    if not outputs or any(math.isnan(hypothesis.log_prob) for hypothesis in outputs):
        raise NotNumbersError
    return outputs


@partial(jax.jit, static_argnums=2)
def _keys(root: Key[Array, ""], places: Int[Array, " B"], num_samples: int) -> Key[Array, "B K"]:
    return keys_of_samples(jax.vmap(partial(jax.random.fold_in, root))(places), num_samples)


@jax.jit
def _remember(graphdef: nnx.GraphDef, params: Any, source: Int[Array, "B S"]) -> Memory:
    return nnx.merge(graphdef, params).remember(source)


@jax.jit
def _step(
    graphdef: nnx.GraphDef, params: Any, memory: Memory, tokens: Int[Array, "B K"], cache: Cache
) -> tuple[Float[Array, "B K V"], Cache]:
    return nnx.merge(graphdef, params).step(tokens, cache, memory)


@partial(jax.jit, static_argnums=1)
def _score(
    graphdef: nnx.GraphDef, bos_id: int, params: Any, source: Int[Array, "B S"], labels: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    model: Seq2Seq = nnx.merge(graphdef, params)
    target = jnp.concatenate([jnp.full_like(labels[:, :1], bos_id), labels[:, :-1]], axis=1)
    segments = (labels != PAD).astype(jnp.int32)
    return -smoothed_cross_entropy(model(source, target, target_segments=segments), labels)


@jax.jit
def _attention(
    graphdef: nnx.GraphDef, params: Any, source: Int[Array, "B S"], target: Int[Array, "B T"]
) -> AttentionWeights:
    return nnx.merge(graphdef, params).attention_weights(source, target)
