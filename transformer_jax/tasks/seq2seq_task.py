"""Base of the tasks with an encoder-decoder model: pairs of texts, cross-entropy, search."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.packing import Example, Seq2SeqBatch, collate_pairs
from transformer_jax.data.readers import spread_evenly
from transformer_jax.data.tokenizers import pair_from_files, train_pair
from transformer_jax.decoding.generator import BAD_WORDS, Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import Seq2Seq, abstract_params, split
from transformer_jax.nn.losses import Params, Sums, chunked_cross_entropy
from transformer_jax.nn.model_config import training_flops
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.metrics import exact_match, perplexity
from transformer_jax.tasks.seq2seq_model import on_one_line

MAX_SOURCE_LENGTH = 1024
"""Maximum tokens of a validation sentence: a memory limit, not one of the model."""


class Seq2SeqTask:
    """A task whose records are pairs of texts; see `tasks.base.Task`.

    A subclass adds its data and, by `output_scores` and `settings`, what is its own in metrics and stored models.
    """

    metrics: tuple[str, ...] = ("loss", "perplexity", "exact_match")
    lower_is_better = ("loss", "perplexity")
    data_name = ""
    TOKENIZER_PAIRS = 200_000
    """Maximum number of pairs to train the tokenizer on, unless `config.tokenizer.max_texts` is set."""

    def __init__(
        self,
        config: Config,
        train: Sequence[tuple[str, str]],
        validation: Sequence[tuple[str, str]],
        tokenizer_files: dict[str, bytes] | None,
        notes: list[str],
    ) -> None:
        """Train a tokenizer unless given one, and check the data.

        Args:
            config: the experiment.
            train: training pairs.
            validation: validation pairs. All of them count, however long.
            tokenizer_files: files of a tokenizer trained before, or None.
            notes: facts about the data.

        Raises:
            UserError: if there is no data, a validation pair is too long, or fields of the config contradict each
                other.
        """
        self.config, self.train, self.validation = config, train, list(validation)
        self.notes = [f"{len(train):,} training pairs, {len(self.validation):,} validation pairs", *notes]
        for part, pairs in (("training", train), ("validation", self.validation)):
            if not len(pairs):
                raise UserError(f"The {part} data has no sentence pairs; check the files under config.data.")
        if tokenizer_files is None:
            spec = config.tokenizer
            sources, targets = self._sides(spread_evenly(train, spec.max_texts or self.TOKENIZER_PAIRS))
            self.tokenizer = train_pair(
                spec.kind,
                sources,
                targets,
                spec.vocab_size,
                spec.joint,
                source_normalization=spec.source_normalization,
                byte_fallback=spec.byte_fallback,
            )
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
        self._check_validation()
        self.graphdef, _ = abstract_params(Seq2Seq, self.model_config)
        limit = config.model.position_limit
        if limit is not None and config.data.max_length > limit:
            raise UserError(
                f"config.data.max_length is {config.data.max_length}, but config.model.max_positions only {limit}; "
                "raise that."
            )

    @cached_property
    def generator(self) -> Generator:
        """Search over the model, with the settings of an imported model if the run started from one."""
        # The fused attention kernel needs masks that a step of beam search does not have.
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
        """Token ids of source and target, each ending with EOS."""
        sources, targets = (
            [np.array([*ids, tokenizer.special_tokens.eos], np.int32) for ids in tokenizer.encode_batch(side)]
            for tokenizer, side in zip((self.tokenizer.source, self.tokenizer.target), self._sides(pairs), strict=True)
        )
        return list(zip(sources, targets, strict=True))

    def collate(self, rows: list[list[Example]], row_length: int, num_rows: int) -> Seq2SeqBatch:
        """Rows of pairs as a batch."""
        return collate_pairs(rows, row_length, num_rows, bos=self.tokenizer.target.special_tokens.bos)

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Draw the initial parameters."""
        return split(Seq2Seq(self.model_config, rngs=nnx.Rngs(key)))[1]

    def loss(self, params: Params, batch: Seq2SeqBatch, key: Key[Array, ""] | None) -> Sums:
        """Label-smoothed cross-entropy in nats, and the number of target tokens."""
        return self._loss(params, batch, key, smoothing=self.config.optim.label_smoothing)

    def eval_loss(self, params: Params, batch: Seq2SeqBatch, key: Key[Array, ""] | None) -> Sums:
        """Cross-entropy without smoothing, and the number of target tokens."""
        return self._loss(params, batch, key, smoothing=0.0)

    def flops(self, batch: Seq2SeqBatch) -> float:
        """FLOPs of the matrix products of one training step on this batch; see `nn.model_config.forward_flops`."""
        rows, source_length = batch.source.shape
        return training_flops(self.model_config, rows, source_length, batch.target.shape[1])

    def predict(self, params: Params, numbers: Sequence[int], *, final: bool) -> list[str]:
        """Outputs for the validation pairs of these numbers: searched as configured if `final`, otherwise greedily."""
        sources = [self.validation_examples[number][0].tolist() for number in numbers]
        found = self.generator.generate(params, sources, self.search_options(final=final))
        return [on_one_line(self.tokenizer.target.decode(best.tokens)) for best, *_ in found]

    def score(self, predictions: list[str], sums: dict[str, float] | None) -> Evaluation:
        """Loss and perplexity per token, and `output_scores`."""
        assert sums is not None
        sources, references = (list(side) for side in zip(*self.validation, strict=True))
        scores = {
            "loss": sums["loss"] / sums["weight"],
            "perplexity": perplexity(sums["loss"], sums["weight"]),
            **self.output_scores(sources, predictions, references),
        }
        return Evaluation(scores, list(zip(sources, predictions, references, strict=True)))

    def output_scores(self, sources: list[str], outputs: list[str], references: list[str]) -> dict[str, float | str]:
        """Scores of the outputs, without loss and perplexity; for subclasses to override, together with `metrics`."""
        del sources
        return {"exact_match": exact_match(outputs, references)}

    def search_options(self, *, final: bool) -> SearchOptions:
        """Options of an evaluation: as configured if `final`, otherwise greedy search."""
        decoding = self.config.decoding
        return SearchOptions(
            beam_size=decoding.beam_size if final else 1,
            alpha=decoding.alpha,
            max_extra_tokens=decoding.max_extra_tokens,
            max_length=decoding.max_length or None,
            conventions=decoding.conventions,
        )

    def _sides(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
        """Sources and targets as the model sees them."""
        sources, targets = zip(*pairs, strict=True)
        return list(sources), list(targets)

    def _check_validation(self) -> None:
        limit = self.config.model.position_limit or MAX_SOURCE_LENGTH
        for number, example in enumerate(self.validation_examples, start=1):
            length = max(map(len, example))
            if length > limit:
                raise UserError(
                    f"Validation pair {number:,} has {length:,} tokens, but the limit is {limit:,}; shorten it."
                )

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
