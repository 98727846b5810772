"""A trained classifier: texts in, classes and their probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.data.readers import is_blank
from transformer_jax.data.tokenizers import TokenizerPair, encode_texts
from transformer_jax.decoding.scheduler import batches_by_length, padded
from transformer_jax.nn import Classifier, ModelConfig, abstract_params
from transformer_jax.sharding import spread
from transformer_jax.system import BlankLineError, NotNumbersError, Positive, UserError, check_fields
from transformer_jax.system.output import Report
from transformer_jax.tasks.classification.labelled import AG_NEWS_CLASSES, AG_NEWS_COLUMNS, TEXT_AND_LABEL
from transformer_jax.tasks.seq2seq_model import check_batch_size, check_texts


class Predictor:
    """Runs a classifier. The result for a text does not depend on the others in its batch."""

    def __init__(self, graphdef: nnx.GraphDef, *, num_classes: int, batch_size: int = 64) -> None:
        """Make a predictor of one model structure; parameters come with each call.

        Args:
            graphdef: structure of a `Classifier`.
            num_classes: its number of classes.
            batch_size: largest number of texts at a time.
        """
        self.graphdef = graphdef
        self.num_classes = num_classes
        self.batch_size = batch_size

    def predict(
        self, params: Any, texts: Sequence[Sequence[int]], *, report: Report | None = None
    ) -> Float[np.ndarray, "n C"]:
        """The probability of each class for each text, given as token ids, at least one.

        `report` is called as batches are finished.

        Raises:
            UserError: if the model's outputs are not numbers.
        """
        probabilities = np.zeros((len(texts), self.num_classes), np.float32)

        def ask(params: Any, batch: tuple[int, int, list[int]]) -> tuple[list[int], Float[np.ndarray, "n C"]]:
            length, rows, chosen = batch
            tokens = padded([texts[i] for i in chosen], rows, length)
            return chosen, np.asarray(_probabilities(self.graphdef, params, tokens))[: len(chosen)]

        batches = list(batches_by_length([len(text) for text in texts], self.batch_size))
        for chosen, found in spread(ask, batches, params):
            probabilities[chosen] = found
            if report is not None:
                report(len(chosen))
        if not np.isfinite(probabilities).all():
            raise NotNumbersError
        return probabilities


@jax.jit
def _probabilities(graphdef: nnx.GraphDef, params: Any, tokens: Int[Array, "B S"]) -> Float[Array, "B C"]:
    model: Classifier = nnx.merge(graphdef, params)
    return jax.nn.softmax(model(tokens)[:, 0])


@dataclass(frozen=True)
class TextClassifierSettings:
    """Settings of a classifier: everything beside its sizes, vocabulary and parameters."""

    classes: tuple[str, ...] = ("no", "yes")
    """In the order of the model's outputs."""
    lowercase: bool = False
    """Trained on lower-cased text, so inputs are lower-cased too."""
    max_length: Positive = 128
    """Largest number of tokens that it reads; longer texts are truncated."""
    text_columns: tuple[str, ...] = TEXT_AND_LABEL.text_columns
    """Columns of the text in the files it was trained on, like `DataConfig.text_columns`; `evaluate` reads them."""
    label_column: str = TEXT_AND_LABEL.label_column
    """Column of the label."""

    def __post_init__(self) -> None:
        check_fields(self, "settings.{}".format)

    @classmethod
    def upgrade(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Stored settings, those of release 0.1.0 turned into today's: it had no columns."""
        if "text_columns" in settings or settings.get("classes") != list(AG_NEWS_CLASSES):
            return settings
        return settings | AG_NEWS_COLUMNS._asdict()

    @property
    def title(self) -> str:
        """Title of the model card."""
        return f"A model for text classification: {', '.join(self.classes)}"

    @property
    def limits(self) -> str:
        """Limits of the model, for its card."""
        return (
            f"It reads the first {self.max_length:,} tokens of a text, and knows only what is in the data that it was "
            "trained on.\nIt always names one of its classes, also for texts that belong to none."
        )


class Classification(NamedTuple):
    """Prediction for one text."""

    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """Probability of every class, in the order of the model's outputs."""


class TextClassifier:
    """A trained classifier: texts in, classes out. Safe to call from several threads."""

    settings_type = TextClassifierSettings
    model_type = Classifier

    def __init__(
        self, model_config: ModelConfig, params: Any, tokenizer: TokenizerPair, settings: TextClassifierSettings
    ) -> None:
        """Put the parts together; `params` is the nested dict of `nn.split`.

        Raises:
            UserError: if the numbers of outputs and classes differ.
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
        self.graphdef, _ = abstract_params(Classifier, model_config)

    @property
    def model(self) -> Classifier:
        """The model as a Flax NNX module with its parameters."""
        model: Classifier = nnx.merge(self.graphdef, self.params)
        return model

    @property
    def normalization(self) -> str:
        """What precedes tokenization, as a Python expression of `text`, for the READMEs of exported folders."""
        return "text.lower()" if self.settings.lowercase else "text"

    def classify(
        self, texts: Sequence[str], *, batch_size: int = 64, report: Report | None = None
    ) -> list[Classification]:
        """The class of each text, and the probabilities of all classes, in order.

        Args:
            texts: not blank; those longer than the model reads are truncated.
            batch_size: texts at a time; it changes speed and memory, not results.
            report: called with numbers of texts as they are finished; for progress bars.

        Raises:
            TypeError: if a text is not a string.
            UserError: if a text is blank, or the batch size below 1.
        """
        classes = self.settings.classes
        return [
            Classification(classes[int(row.argmax())], dict(zip(classes, map(float, row), strict=True)))
            for row in self.probabilities(texts, batch_size=batch_size, report=report)
        ]

    def probabilities(
        self, texts: Sequence[str], *, batch_size: int = 64, report: Report | None = None
    ) -> Float[np.ndarray, "n C"]:
        """The probability of each class for each text; arguments and errors are those of `classify`."""
        self.check(texts)
        check_batch_size(batch_size)
        normalized = [text.lower() if self.settings.lowercase else text for text in texts]
        ids = encode_texts(self.tokenizer, normalized, self.settings.max_length)
        predictor = Predictor(self.graphdef, num_classes=len(self.settings.classes), batch_size=batch_size)
        return predictor.predict(self.params, ids, report=report)

    def check(self, texts: Sequence[str]) -> None:
        """Refuse texts that `classify` does not accept.

        Raises:
            TypeError: if a text is not a string.
            UserError: if a text is blank.
        """
        check_texts(texts)
        for number, text in enumerate(texts, start=1):
            if is_blank(text):
                raise BlankLineError(number, "is blank, so it has no class; leave it out.")
