"""Translation: sentence pairs, cross-entropy, BLEU."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.batching import Batches, Example, Seq2SeqBatch, collate_pairs
from transformer_jax.data.sources import load_pairs
from transformer_jax.data.text import drop_blank_pairs
from transformer_jax.data.tokenizers import EOS, pair_from_files, train_pair
from transformer_jax.errors import UserError
from transformer_jax.generation import Generator, SearchOptions
from transformer_jax.losses import chunked_cross_entropy
from transformer_jax.metrics import exact_match, perplexity, translation_scores
from transformer_jax.models import Seq2Seq, split, structure
from transformer_jax.sharding import make_mesh, row_shards
from transformer_jax.steps import Params, Sums, eval_step
from transformer_jax.tasks.base import Evaluation

MAX_SOURCE_LENGTH = 1024
"""Tokens of a sentence to be translated, at most: a bound for memory, not of the model."""
TOKENIZER_SENTENCES = 200_000
"""The tokenizer is trained on at most so many pairs, spread evenly over the training data."""


class TranslationTask:
    """Source sentences to target sentences; see `tasks.base.Task`."""

    metrics = ("loss", "perplexity", "exact_match", "bleu", "bleu_lowercase", "chrf")

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and train a tokenizer unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        self.config = config
        data = config.data
        train, self.validation = load_pairs(data, data.train_split), list(load_pairs(data, data.validation_split))
        self.notes = [f"{len(train):,} training pairs, {len(self.validation):,} validation pairs"]
        if data.name == "text":
            train, blank = drop_blank_pairs(train)
            self.notes.append(f"left out {blank:,} training pairs with a blank side")
        for part, pairs in (("training", train), ("validation", self.validation)):
            if not len(pairs):
                raise UserError(f"The {part} data has no sentence pairs; check the files under config.data.")
        # Two vocabularies may well have one size, so that the model could not tell.
        if config.model.tie_embeddings == "all" and not config.tokenizer.joint:
            raise UserError(
                "config.model.tie_embeddings is 'all', but must be output or none where the languages have "
                "vocabularies of their own (config.tokenizer.joint=False)."
            )
        if tokenizer_files is None:
            stride = -(-len(train) // TOKENIZER_SENTENCES)
            sources, targets = self._sides([train[i] for i in range(0, len(train), stride)])
            spec = config.tokenizer
            self.tokenizer = train_pair(spec.kind, sources, targets, spec.vocab_size, spec.joint)
        else:
            self.tokenizer = pair_from_files(tokenizer_files)
        self.tokenizer_files = self.tokenizer.files()
        self.model_config = replace(
            config.model,
            source_vocab_size=self.tokenizer.source.vocab_size,
            target_vocab_size=self.tokenizer.target.vocab_size,
        )
        self.settings: dict[str, Any] = {
            "source_language": data.source_language,
            "target_language": data.target_language,
            "lowercase": data.lowercase,
            "max_source_length": MAX_SOURCE_LENGTH,
            "decoding": asdict(config.decoding),
        }
        self.validation_examples = self.encode(self.validation)
        longest = self._longest_validation()
        row_multiple = row_shards(make_mesh(config.mesh)) * config.optim.accumulate_steps
        batches = partial(
            Batches,
            collate=collate_pairs,
            batching=data.batching,
            bucket_lengths=data.bucket_lengths,
            row_length=data.row_length,
            row_multiple=row_multiple,
            seed=config.seed,
        )
        self.batches: Batches = batches(
            train, self.encode, max_length=data.max_length, tokens_per_batch=data.tokens_per_batch
        )
        # Every validation example counts, however long.
        self.validation_batches: Batches = batches(
            self.validation_examples,
            list,
            max_length=longest,
            tokens_per_batch=max(data.tokens_per_batch, max(longest, data.row_length) * row_multiple),
            shuffle=False,
        )
        self.graphdef, _ = structure(self.model_config)
        limit = config.model.position_limit
        if limit is not None and data.max_length > limit:
            raise UserError(
                f"config.data.max_length is {data.max_length}, but config.model.max_positions only {limit}; raise that."
            )
        # The fused kernel wants masks that a step of beam search does not have.
        searched, _ = structure(replace(self.model_config, attention_implementation="xla"))
        self.generator = Generator(searched, batch_size=config.decoding.batch_size, max_positions=limit)
        self._validation_sums = jax.jit(partial(eval_step, loss_fn=partial(self._loss, smoothing=0.0)))

    def encode(self, pairs: list[tuple[str, str]]) -> list[Example]:
        """Token ids of source and target, end of sentence included."""
        tokenizers = (self.tokenizer.source, self.tokenizer.target)
        encoded = [t.encode_batch(side) for t, side in zip(tokenizers, self._sides(pairs), strict=True)]
        return [tuple(np.array([*ids, EOS], np.int32) for ids in example) for example in zip(*encoded, strict=True)]

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        return split(Seq2Seq(self.model_config, rngs=nnx.Rngs(key)))[1]

    def loss(self, params: Params, batch: Seq2SeqBatch, key: Key[Array, ""] | None) -> Sums:
        """Smoothed cross-entropy in nats, and the number of target tokens."""
        return self._loss(params, batch, key, smoothing=self.config.optim.label_smoothing)

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Perplexity and BLEU on the validation data; greedy search unless `final`."""
        totals = {"loss": 0.0, "weight": 0.0}
        for batch, _ in self.validation_batches.iterate(epochs=1):
            for name, value in self._validation_sums(params, batch).items():
                totals[name] += float(value)
        sources, references = (list(side) for side in zip(*self.validation, strict=True))
        decoding = self.config.decoding
        options = SearchOptions(
            beam_size=decoding.beam_size if final else 1,
            alpha=decoding.alpha,
            max_extra_tokens=decoding.max_extra_tokens,
        )
        found = self.generator.generate(params, [source.tolist() for source, _ in self.validation_examples], options)
        outputs = [self.tokenizer.target.decode(best.tokens) for best, *_ in found]
        scores = {
            "loss": totals["loss"] / totals["weight"],
            "perplexity": perplexity(totals["loss"], totals["weight"]),
            "exact_match": exact_match(outputs, references),
            **translation_scores(outputs, references),
        }
        return Evaluation(scores, list(zip(sources, outputs, references, strict=True)))

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """The sources and the targets as the model is to see them."""
        case = str.lower if self.config.data.lowercase else str
        sources, targets = zip(*pairs, strict=True)
        return [case(text) for text in sources], [case(text) for text in targets]

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
        loss = chunked_cross_entropy(hidden, model.output_table, batch.labels, weights, smoothing)
        return {"loss": loss, "weight": weights.sum()}
