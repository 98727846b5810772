"""What all tasks with an encoder-decoder model share: pairs to batches, cross-entropy, a generator."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.collate import Seq2SeqBatch, collate_pairs
from transformer_jax.data.pipeline import Example, spread_evenly
from transformer_jax.data.tokenizers import pair_from_files, train_pair
from transformer_jax.decoding.generator import BAD_WORDS, Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import Seq2Seq, abstract_params, split, stack_layers
from transformer_jax.nn.losses import Params, Sums, chunked_cross_entropy, eval_step
from transformer_jax.sharding import make_mesh, on_mesh, shard_batch, state_shardings
from transformer_jax.system import distributed
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.base import make_batches
from transformer_jax.tasks.metrics import perplexity

MAX_SOURCE_LENGTH = 1024
"""Tokens of what is read, at most: a bound for memory, not of the model."""


class Seq2SeqTask:
    """A task whose examples are pairs of texts; a subclass adds its data, its scores and its settings."""

    lower_is_better = ("loss", "perplexity")
    TOKENIZER_PAIRS = 200_000
    """The tokenizer is trained on at most so many, unless `config.tokenizer.max_texts` says otherwise."""

    def __init__(
        self,
        config: Config,
        train: Sequence[tuple[str, str]],
        validation: Sequence[tuple[str, str]],
        tokenizer_files: dict[str, bytes] | None,
        notes: list[str],
    ) -> None:
        """Train a tokenizer unless given one, and make batches of the data.

        Args:
            config: of the experiment.
            train: pairs of texts to learn from.
            validation: pairs to choose on; every one counts, however long.
            tokenizer_files: of a tokenizer trained before, or None.
            notes: on the data.

        Raises:
            UserError: if there is no data, or the fields of the config contradict each other.
        """
        self.config, self.validation = config, list(validation)
        self.notes = [f"{len(train):,} training pairs, {len(self.validation):,} validation pairs", *notes]
        for part, pairs in (("training", train), ("validation", self.validation)):
            if not len(pairs):
                raise UserError(f"The {part} data has no sentence pairs; check the files under config.data.")
        if tokenizer_files is None:
            spec = config.tokenizer
            sources, targets = self._sides(spread_evenly(train, spec.max_texts or self.TOKENIZER_PAIRS))
            self.tokenizer = train_pair(spec.kind, sources, targets, spec.vocab_size, spec.joint)
        else:
            self.tokenizer = pair_from_files(tokenizer_files)
        self.tokenizer_files = self.tokenizer.files()
        self.model_config = replace(
            config.model,
            source_vocab_size=self.tokenizer.source.vocab_size,
            target_vocab_size=self.tokenizer.target.vocab_size,
        )
        self.settings: dict[str, Any] = {"decoding": asdict(config.decoding)}
        self.validation_examples = self.encode(self.validation)
        collate = partial(collate_pairs, start=self.tokenizer.target.special_tokens.bos)
        self.batches = make_batches(config, train, self.encode, collate)
        self.validation_batches = make_batches(
            config, self.validation_examples, list, collate, longest=self._longest_validation()
        )
        self.graphdef, _ = abstract_params(Seq2Seq, self.model_config)
        limit = config.model.position_limit
        if limit is not None and config.data.max_length > limit:
            raise UserError(
                f"config.data.max_length is {config.data.max_length}, but config.model.max_positions only {limit}; "
                "raise that."
            )
        self.mesh = make_mesh(config.mesh)
        self._validation_sums = jax.jit(
            partial(on_mesh(eval_step, self.mesh), loss_fn=partial(self._loss, smoothing=0.0))
        )

    @cached_property
    def generator(self) -> Generator:
        """The model behind the search, which keeps to what `settings` has of an imported model."""
        # The fused kernel wants masks that a step of beam search does not have.
        searched, _ = abstract_params(
            Seq2Seq, replace(self.model_config, attention_implementation="xla", scan_layers=False)
        )
        return Generator(
            searched,
            batch_size=self.config.decoding.batch_size,
            max_positions=self.config.model.position_limit,
            special_tokens=self.tokenizer.target.special_tokens,
            bad_words=self.settings.get("bad_words", BAD_WORDS),
            renormalizes=self.settings.get("renormalizes", False),
        )

    def encode(self, pairs: list[tuple[str, str]]) -> list[Example]:
        """Token ids of source and target, end of sentence included."""
        sources, targets = (
            [np.array([*ids, tokenizer.special_tokens.eos], np.int32) for ids in tokenizer.encode_batch(side)]
            for tokenizer, side in zip((self.tokenizer.source, self.tokenizer.target), self._sides(pairs), strict=True)
        )
        return list(zip(sources, targets, strict=True))

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        return split(Seq2Seq(self.model_config, rngs=nnx.Rngs(key)))[1]

    def loss(self, params: Params, batch: Seq2SeqBatch, key: Key[Array, ""] | None) -> Sums:
        """Smoothed cross-entropy in nats, and the number of target tokens."""
        return self._loss(params, batch, key, smoothing=self.config.optim.label_smoothing)

    def likelihood(self, params: Params) -> dict[str, float | str]:
        """Loss and perplexity per token on the validation data, without smoothing; the devices share out the rows."""
        totals = {"loss": 0.0, "weight": 0.0}
        params = stack_layers(params) if self.model_config.scan_layers else params
        params = jax.device_put(params, state_shardings(params, self.mesh))
        for batch, _ in self.validation_batches.iterate(epochs=1):
            for name, value in self._validation_sums(params, shard_batch(batch, self.mesh)).items():
                totals[name] += float(value)
        return {
            "loss": totals["loss"] / totals["weight"],
            "perplexity": perplexity(totals["loss"], totals["weight"]),
        }

    def outputs(self, params: Params, *, final: bool) -> list[str]:
        """What the model makes of the validation sources, in order; greedy search unless `final`.

        All devices of all processes share in the search.
        """
        here, options = distributed.local_copy(params), self.search_options(final=final)
        return distributed.parallel_map(partial(self._search, here, options), range(len(self.validation)))

    def search_options(self, *, final: bool) -> SearchOptions:
        """Of an evaluation: as configured if `final`, otherwise greedy."""
        decoding = self.config.decoding
        return SearchOptions(
            beam_size=decoding.beam_size if final else 1,
            alpha=decoding.alpha,
            max_extra_tokens=decoding.max_extra_tokens,
            max_length=decoding.max_length or None,
            conventions=decoding.conventions,
        )

    def _search(self, params: Params, options: SearchOptions, numbers: Sequence[int]) -> list[str]:
        """The outputs for the validation examples of these numbers."""
        ids = [self.validation_examples[number][0].tolist() for number in numbers]
        found = self.generator.generate(params, ids, options)
        return [self.tokenizer.target.decode(best.tokens) for best, *_ in found]

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """The sources and the targets as the model is to see them."""
        sources, targets = zip(*pairs, strict=True)
        return list(sources), list(targets)

    def _longest_validation(self) -> int:
        limit = self.config.model.position_limit or MAX_SOURCE_LENGTH
        for number, example in enumerate(self.validation_examples, start=1):
            length = max(map(len, example))
            if length > limit:
                raise UserError(
                    f"Validation pair {number:,} has {length:,} tokens, but the limit is {limit:,}; shorten it."
                )
        return max(max(map(len, example)) for example in self.validation_examples)

    def _loss(self, params: Params, batch: Any, key: Key[Array, ""] | None, *, smoothing: float) -> Sums:
        model: Seq2Seq = nnx.merge(self.graphdef, params)
        hidden = model.hidden(
            batch.source,
            batch.target,
            source_segments=batch.source_segments,
            target_segments=batch.target_segments,
            source_positions=batch.source_positions,
            target_positions=batch.target_positions,
            dropout_key=key,
        )
        weights = (batch.target_segments != 0).astype(jnp.float32)
        bias = None if model.output_bias is None else model.output_bias[...]
        loss = chunked_cross_entropy(hidden, model.output_table, batch.labels, weights, smoothing, bias=bias)
        return {"loss": loss, "weight": weights.sum()}
