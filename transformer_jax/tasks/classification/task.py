"""Text classification: labelled texts, cross-entropy over classes, accuracy and related metrics."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from transformer_jax.config import Config
from transformer_jax.data import PAD, UNK
from transformer_jax.data.packing import NO_LABEL, Example, TextBatch, collate_texts
from transformer_jax.data.readers import spread_evenly
from transformer_jax.data.tokenizers import encode_texts, tokenizer_from_files, train_tokenizer
from transformer_jax.nn import Classifier, abstract_params, split
from transformer_jax.nn.layers import split_key
from transformer_jax.nn.losses import Params, Sums, chunked_cross_entropy, smoothed_cross_entropy
from transformer_jax.nn.model_config import training_flops
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.classification.labelled import Labelled
from transformer_jax.tasks.classification.metrics import classification_scores
from transformer_jax.tasks.classification.sources import columns_of, load_training_data
from transformer_jax.tasks.classification.text_classifier import Predictor

TOKENIZER_TEXTS = 200_000
"""Maximum number of texts to train the tokenizer on, unless `config.tokenizer.max_texts` is set."""


class ClassificationTask:
    """Texts to classes; see `tasks.base.Task`."""

    metrics = ("loss", "accuracy", "macro_f1", "expected_calibration_error")
    lower_is_better = ("loss", "expected_calibration_error")
    eval_loss = None

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None:
        """Load the data, and train a tokenizer unless given one.

        Raises:
            UserError: if the data can't be read or the fields of the config contradict each other.
        """
        self.config = config
        data, own = config.data, config.classification
        if own.mask_loss and not own.mask_rate:
            raise UserError(
                f"config.classification.mask_loss is {own.mask_loss}, but no tokens are hidden; raise "
                "config.classification.mask_rate."
            )
        self.data_name = data.name
        self.train, self.validation, self.classes, self.notes = load_training_data(data, own)
        if tokenizer_files is None:
            records = spread_evenly(self.train, config.tokenizer.max_texts or TOKENIZER_TEXTS)
            texts = [self._case(record.text) for record in records]
            spec = config.tokenizer
            self.tokenizer = train_tokenizer(
                spec.kind,
                texts,
                spec.vocab_size,
                normalization=spec.source_normalization,
                byte_fallback=spec.byte_fallback,
            )
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
        self.graphdef, _ = abstract_params(Classifier, self.model_config)
        unscanned, _ = abstract_params(Classifier, replace(self.model_config, scan_layers=False))
        self.predictor = Predictor(unscanned, num_classes=len(self.classes), batch_size=config.decoding.batch_size)

    def encode(self, records: list[Labelled]) -> list[Example]:
        """Token ids, truncated to `max_length`, and the number of the class."""
        texts = encode_texts(self.tokenizer, [self._case(record.text) for record in records], self.max_length)
        return [
            (np.array(ids, np.int32), np.array([self.classes.index(record.label)], np.int32))
            for ids, record in zip(texts, records, strict=True)
        ]

    def collate(self, rows: list[list[Example]], row_length: int, num_rows: int) -> TextBatch:
        """Rows of labelled texts as a batch."""
        return collate_texts(rows, row_length, num_rows)

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Draw the initial parameters."""
        return split(Classifier(self.model_config, rngs=nnx.Rngs(key)))[1]

    def loss(self, params: Params, batch: TextBatch, key: Key[Array, ""] | None) -> Sums:
        """Label-smoothed cross-entropy of classes and, weighted, of masked tokens, in nats; and the number of texts."""
        model: Classifier = nnx.merge(self.graphdef, params)
        own = self.config.classification
        tokens, segments, positions, labels = map(jnp.asarray, batch)
        mask_key, encode_key, classify_key = split_key(key, 3)
        seen, places, are_hidden = hide_tokens(tokens, positions, own.mask_rate, mask_key)
        x = model.encode(seen, segments, positions, dropout_key=encode_key)
        logits = model.classify(x, segments, positions, num_segments=labels.shape[1], dropout_key=classify_key)
        weights = (labels != NO_LABEL).astype(jnp.float32)
        losses = smoothed_cross_entropy(logits, jnp.maximum(labels, 0), self.config.optim.label_smoothing)
        loss = jnp.sum(jnp.where(labels != NO_LABEL, losses, 0.0))
        if key is not None and own.mask_loss:
            hidden = jnp.take_along_axis(x, places[..., None], axis=1)
            truth = jnp.take_along_axis(tokens, places, axis=1)
            guesses = chunked_cross_entropy(hidden, model.embedding.table[...], truth, are_hidden)
            loss += own.mask_loss * weights.sum() * guesses / jnp.maximum(are_hidden.sum(), 1.0)
        return {"loss": loss, "weight": weights.sum()}

    def flops(self, batch: TextBatch) -> float:
        """FLOPs of the matrix products of one training step on this batch; see `nn.model_config.forward_flops`."""
        rows, length = batch.tokens.shape
        return training_flops(self.model_config, rows, length, 0)

    def predict(self, params: Params, numbers: Sequence[int], *, final: bool) -> list[list[float]]:
        """Probabilities of the classes for the validation texts of these numbers; `final` makes no difference."""
        del final
        texts = [self.validation_examples[number][0].tolist() for number in numbers]
        return self.predictor.predict(params, texts).tolist()

    def score(self, predictions: list[list[float]], sums: dict[str, float] | None) -> Evaluation:
        """Loss, accuracy, macro F1 and calibration error."""
        del sums
        probabilities = np.array(predictions, np.float32)
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
    """Replace a share `rate` of the tokens, except the first of each text, by the unknown token.

    Returns:
        The tokens as the model sees them; M places of each row, enough that more are hardly ever drawn; and 1 for
        those of the places that are hidden, 0 for the others.
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
