"""A trained classifier: texts in, classes and their probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float

from transformer_jax.bundle.checks import check_batch_size, check_texts
from transformer_jax.data.tokenizers import TokenizerPair, encode_texts
from transformer_jax.errors import UserError
from transformer_jax.models import Classifier, ModelConfig, structure
from transformer_jax.prediction import Predictor


@dataclass(frozen=True)
class TextClassifierSettings:
    """What a classifier knows beside its sizes, vocabulary and parameters."""

    classes: tuple[str, ...] = ("no", "yes")
    """In the order of the model's outputs."""
    lowercase: bool = False
    """It was trained on lower-cased text, so what it reads is lower-cased too."""
    max_length: int = 128
    """Tokens of a text that it reads; what comes after them is left out."""

    @property
    def title(self) -> str:
        """Of the model's card."""
        return f"A model for text classification: {', '.join(self.classes)}"

    @property
    def limits(self) -> str:
        """Of the model, for its card."""
        return (
            f"It reads the first {self.max_length:,} tokens of a text, and knows only what is in the data that it was "
            "trained on.\nIt always names one of its classes, also for texts that belong to none."
        )


class Classification(NamedTuple):
    """What a classifier says of one text."""

    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """Of every class, in the order of the model's outputs."""


class TextClassifier:
    """A trained classifier: texts in, classes out. Safe to call from several threads."""

    settings_type = TextClassifierSettings
    model_type = Classifier

    def __init__(
        self, model_config: ModelConfig, params: Any, tokenizer: TokenizerPair, settings: TextClassifierSettings
    ) -> None:
        """Put the parts together; `params` is the nested dict of `models.split`.

        Raises:
            UserError: if the model has not as many outputs as there are classes.
        """
        if model_config.num_classes != len(settings.classes):
            raise UserError(
                f"The model has {model_config.num_classes} outputs, but its settings name {len(settings.classes)} "
                "classes; copy the model again from its origin."
            )
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer.source
        self.settings = settings
        self.graphdef, _ = structure(Classifier, model_config)

    @property
    def model(self) -> Classifier:
        """The model as a Flax NNX module with its parameters."""
        model: Classifier = nnx.merge(self.graphdef, self.params)
        return model

    def classify(self, texts: Sequence[str], *, batch_size: int = 64) -> list[Classification]:
        """The class of each text, and the probabilities of all classes, in order.

        Args:
            texts: any texts but blank ones; what is longer than the model reads is cut.
            batch_size: texts at a time; it changes speed and memory, not results.

        Raises:
            TypeError: if a text is no string.
            UserError: if a text is blank, or the batch size below 1.
        """
        classes = self.settings.classes
        return [
            Classification(classes[int(row.argmax())], dict(zip(classes, map(float, row), strict=True)))
            for row in self.probabilities(texts, batch_size=batch_size)
        ]

    def probabilities(self, texts: Sequence[str], *, batch_size: int = 64) -> Float[np.ndarray, "n C"]:
        """The probability of each class for each text; arguments and errors are those of `classify`."""
        self.check(texts)
        check_batch_size(batch_size)
        normalised = [text.lower() if self.settings.lowercase else text for text in texts]
        ids = encode_texts(self.tokenizer, normalised, self.settings.max_length)
        predictor = Predictor(self.graphdef, num_classes=len(self.settings.classes), batch_size=batch_size)
        return predictor.predict(self.params, ids)

    def check(self, texts: Sequence[str]) -> None:
        """Do nothing, unless `classify` would not take one of these texts.

        Raises:
            TypeError: if a text is no string.
            UserError: if a text is blank.
        """
        check_texts(texts)
        for number, text in enumerate(texts, start=1):
            if not text.strip():
                raise UserError(f"Line {number:,} is blank, so it has no class; leave it out.")
