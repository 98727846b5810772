"""Text classification: labelled texts, cross-entropy over the classes, accuracy and its kin."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.batching import Example
from transformer_jax.data.collate import NO_LABEL, TextBatch, collate_texts
from transformer_jax.data.held_out import cut
from transformer_jax.data.labelled import Labelled, read_extra
from transformer_jax.data.texts import load_texts
from transformer_jax.data.tokenizers import encode_texts, tokenizer_from_files, train_tokenizer
from transformer_jax.errors import UserError
from transformer_jax.losses import smoothed_cross_entropy
from transformer_jax.metrics import classification_scores
from transformer_jax.models import Classifier, split, structure
from transformer_jax.prediction import Predictor
from transformer_jax.steps import Params, Sums
from transformer_jax.tasks.base import Evaluation, make_batches

TOKENIZER_TEXTS = 200_000
"""The tokenizer is trained on at most so many texts, spread evenly over the training data."""


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
        data = config.data
        self.data_name = data.name
        train, self.validation, self.classes, self.notes = _load(config)
        if tokenizer_files is None:
            stride = -(-len(train) // TOKENIZER_TEXTS)
            texts = [self._case(train[i].text) for i in range(0, len(train), stride)]
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
        }
        self.validation_examples = self.encode(self.validation)
        self.batches = make_batches(config, train, self.encode, collate_texts)
        self.graphdef, _ = structure(Classifier, self.model_config)
        self.predictor = Predictor(self.graphdef, num_classes=len(self.classes), batch_size=config.decoding.batch_size)

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
        """Smoothed cross-entropy in nats, and the number of texts."""
        model: Classifier = nnx.merge(self.graphdef, params)
        logits = model(
            jnp.asarray(batch.tokens),
            segments=jnp.asarray(batch.segments),
            positions=jnp.asarray(batch.positions),
            num_segments=batch.labels.shape[1],
            dropout_key=key,
        )
        labels = jnp.asarray(batch.labels)
        weights = (labels != NO_LABEL).astype(jnp.float32)
        losses = smoothed_cross_entropy(logits, jnp.maximum(labels, 0), self.config.optim.label_smoothing)
        return {"loss": jnp.sum(weights * losses), "weight": weights.sum()}

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Accuracy and its kin on the validation data."""
        probabilities = self.predictor.predict(params, [tokens.tolist() for tokens, _ in self.validation_examples])
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


def _load(config: Config) -> tuple[Sequence[Labelled], list[Labelled], tuple[str, ...], list[str]]:
    """Training and validation data, the classes, and notes on them."""
    data = config.data
    train, classes = load_texts(data, data.train_split)
    if data.validation_split:
        validation = list(load_texts(data, data.validation_split)[0])
    else:
        train, validation = cut(train, lambda record: record.text, data.validation_percent)
    notes = []
    if data.extra_train:
        held_out = {record.text for record in validation}
        extra = [record for record in read_extra(data.extra_train, classes) if record.text not in held_out]
        train = [*train, *extra]
        notes.append(f"{len(extra):,} of the training texts are from {data.extra_train}")
    for part, records in (("training", train), ("validation", validation)):
        if not len(records):
            raise UserError(f"The {part} data has no texts; check the files under config.data.")
    notes.insert(0, f"{len(train):,} training texts, {len(validation):,} validation texts, {len(classes)} classes")
    return train, validation, classes, notes
