"""Text classification: labelled texts, cross-entropy over the classes, accuracy and its kin."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer_jax.config import Config
from transformer_jax.data.collate import NO_LABEL, TextBatch, collate_texts
from transformer_jax.data.pipeline import Example, spread_evenly
from transformer_jax.data.tokenizers import PAD, UNK, encode_texts, tokenizer_from_files, train_tokenizer
from transformer_jax.nn import Classifier, abstract_params, split
from transformer_jax.nn.layers import split_key
from transformer_jax.nn.losses import Params, Sums, chunked_cross_entropy, smoothed_cross_entropy
from transformer_jax.system import distributed
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.base import Evaluation, make_batches
from transformer_jax.tasks.classification.labelled import Labelled
from transformer_jax.tasks.classification.metrics import classification_scores
from transformer_jax.tasks.classification.sources import columns_of, load_training_data
from transformer_jax.tasks.classification.text_classifier import Predictor

TOKENIZER_TEXTS = 200_000
"""Largest number of texts to train the tokenizer on, unless `config.tokenizer.max_texts` is set."""


class ClassificationTask:
    """Texts to classes; see `tasks.base.Task`."""

    metrics = ("loss", "accuracy", "macro_f1", "expected_calibration_error")
    lower_is_better = ("loss", "expected_calibration_error")

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and train a tokenizer unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        self.config = config
        data, own = config.data, config.classification
        if not 0 <= own.mask_rate < 1:
            raise UserError(f"config.classification.mask_rate is {own.mask_rate}, but must be at least 0 and below 1.")
        if own.mask_loss and not own.mask_rate:
            raise UserError(
                f"config.classification.mask_loss is {own.mask_loss}, but no tokens are hidden; raise "
                "config.classification.mask_rate."
            )
        self.data_name = data.name
        train, self.validation, self.classes, self.notes = load_training_data(data, own)
        if tokenizer_files is None:
            records = spread_evenly(train, config.tokenizer.max_texts or TOKENIZER_TEXTS)
            texts = [self._case(record.text) for record in records]
            self.tokenizer = train_tokenizer(config.tokenizer.kind, texts, config.tokenizer.vocab_size)
        else:
            self.tokenizer = tokenizer_from_files(tokenizer_files)
        self.tokenizer_files = self.tokenizer.files()
        self.model_config = replace(
            config.model, source_vocab_size=self.tokenizer.vocab_size, num_classes=len(self.classes)
        )
        self.max_length = min(data.max_length, config.model.position_limit or data.max_length)
        self.settings: dict[str, Any] = {
            "classes": self.classes,
            "lowercase": data.lowercase,
            "max_length": self.max_length,
            **columns_of(data)._asdict(),
        }
        self.validation_examples = self.encode(self.validation)
        self.batches = make_batches(config, train, self.encode, collate_texts)
        self.graphdef, _ = abstract_params(Classifier, self.model_config)
        asked, _ = abstract_params(Classifier, replace(self.model_config, scan_layers=False))
        self.predictor = Predictor(asked, num_classes=len(self.classes), batch_size=config.decoding.batch_size)

    def encode(self, records: list[Labelled]) -> list[Example]:
        """Token ids and the number of the class; a text that is too long is cut short."""
        texts = encode_texts(self.tokenizer, [self._case(record.text) for record in records], self.max_length)
        return [
            (np.array(ids, np.int32), np.array([self.classes.index(record.label)], np.int32))
            for ids, record in zip(texts, records, strict=True)
        ]

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""
        return split(Classifier(self.model_config, rngs=nnx.Rngs(key)))[1]

    def loss(self, params: Params, batch: TextBatch, key: Key[Array, ""] | None) -> Sums:
        """Smoothed cross-entropy of the classes and, weighted, of hidden tokens, in nats; and the number of texts."""
        model: Classifier = nnx.merge(self.graphdef, params)
        own = self.config.classification
        tokens, segments, positions, labels = map(jnp.asarray, batch)
        mask_key, encode_key, classify_key = split_key(key, 3)
        seen, places, are_hidden = hide_tokens(tokens, positions, own.mask_rate, mask_key)
        x = model.encode(seen, segments, positions, dropout_key=encode_key)
        logits = model.classify(x, segments, positions, num_segments=labels.shape[1], dropout_key=classify_key)
        weights = (labels != NO_LABEL).astype(jnp.float32)
        loss = jnp.sum(
            weights * smoothed_cross_entropy(logits, jnp.maximum(labels, 0), self.config.optim.label_smoothing)
        )
        if key is not None and own.mask_loss:
            hidden = jnp.take_along_axis(x, places[..., None], axis=1)
            truth = jnp.take_along_axis(tokens, places, axis=1)
            guesses = chunked_cross_entropy(hidden, model.embedding.table[...], truth, are_hidden)
            loss += own.mask_loss * weights.sum() * guesses / jnp.maximum(are_hidden.sum(), 1.0)
        return {"loss": loss, "weight": weights.sum()}

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Accuracy and its kin on the validation data."""
        here = distributed.local_copy(params)

        def classify(own: list[list[int]]) -> list[list[float]]:
            return self.predictor.predict(here, own).tolist()

        texts = [tokens.tolist() for tokens, _ in self.validation_examples]
        probabilities = np.array(distributed.deal(classify, texts), np.float32)
        labels = np.array([label[0] for _, label in self.validation_examples])
        report = classification_scores(labels, probabilities, self.classes)
        likelihoods = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
        scores: dict[str, float | str] = {
            "loss": float(-np.log(likelihoods).mean()),
            "accuracy": report.accuracy,
            "macro_f1": report.macro_f1,
            "expected_calibration_error": report.expected_calibration_error,
        }
        chosen = [self.classes[best] for best in probabilities.argmax(axis=1)]
        samples = [(text, said, label) for (text, label), said in zip(self.validation, chosen, strict=True)]
        return Evaluation(scores, samples)

    def _case(self, text: str) -> str:
        return text.lower() if self.config.data.lowercase else text


def hide_tokens(
    tokens: Int[Array, "B S"], positions: Int[Array, "B S"], rate: float, key: Key[Array, ""] | None
) -> tuple[Int[Array, "B S"], Int[Array, "B M"], Float[Array, "B M"]]:
    """Put the unknown token in place of a share `rate` of all tokens, beginnings apart.

    Returns:
        The tokens with some hidden; M places of each row, M being large enough to hardly ever miss a drawn one; and 1
        for the places that are hidden, 0 for the others.
    """
    rows, length = tokens.shape
    most = min(length, math.ceil(1.25 * rate * length))
    if key is None or not most:
        return tokens, jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0))
    drawn = jax.random.uniform(key, tokens.shape)
    drawn = jnp.where((tokens == PAD) | (positions == 0), 1.0, drawn)
    # Sorted instead of `top_k`, for which XLA would bring all rows to every device.
    places = jnp.argsort(drawn, axis=1)[:, :most]
    are_hidden = jnp.take_along_axis(drawn, places, axis=1) < rate

    def hide(tokens: Array, places: Array, are_hidden: Array) -> Array:
        return tokens.at[places].set(jnp.where(are_hidden, UNK, tokens[places]))

    return jax.vmap(hide)(tokens, places, are_hidden), places, are_hidden.astype(jnp.float32)
