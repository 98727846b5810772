"""A trained classifier: texts in, classes and their probabilities out."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import regex
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


class WordEffect(NamedTuple):
    """What a word of a text contributes to its class."""

    text: str
    """The word, as it stands in the text."""
    start: int
    """Its place in the text, in code points from 0."""
    effect: float
    """By how much the log-odds of the class, in nats, fall if the word is left out; below 0, they rise."""


class Classification(NamedTuple):
    """Prediction for one text."""

    label: str
    """The likeliest class."""
    probabilities: dict[str, float]
    """Probability of every class, in the order of the model's outputs."""
    words: list[WordEffect] | None = None
    """The words that the model has read, in the order of the text."""


WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]|[\w--\p{Han}--\p{Hiragana}--\p{Katakana}]+(?:['’-]\w+)*", regex.V1
)
"""A word of a text to explain: of Chinese and Japanese, which have no spaces between words, a character."""
_AT_ONCE = 4096  # texts without a word


class TextClassifier:
    """A trained classifier: texts in, classes out. Safe to call from several threads."""

    settings_type = TextClassifierSettings
    model_type = Classifier
    tab = "transformer_jax.tasks.classification.tab:ClassificationTab"

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
        self, texts: Sequence[str], *, explain: bool = False, batch_size: int = 64, report: Report | None = None
    ) -> list[Classification]:
        """The class of each text, and the probabilities of all classes, in order.

        Explanations leave out one word at a time and read what is left (leave-one-out), a text for each word. Unlike
        gradient × input, that is exact for the words asked about, whatever tokens they are made of, and does not vanish
        where the classifier is sure.

        Args:
            texts: not blank; those longer than the model reads are truncated.
            explain: whether each comes with the effects of its `words`.
            batch_size: texts at a time; it changes speed and memory, not results.
            report: called with numbers of texts as they are finished; for progress bars.

        Raises:
            TypeError: if a text is not a string.
            UserError: if a text is blank, or the batch size below 1.
        """
        classes = self.settings.classes
        found = [
            Classification(classes[int(row.argmax())], dict(zip(classes, map(float, row), strict=True)))
            for row in self.probabilities(texts, batch_size=batch_size, report=None if explain else report)
        ]
        if not explain:
            return found
        explained = []
        for text, said in zip(texts, found, strict=True):
            words = self._effects(text, classes.index(said.label), batch_size)
            explained.append(said._replace(words=words))
            if report is not None:
                report(1)
        return explained

    def _effects(self, text: str, label: int, batch_size: int) -> list[WordEffect]:
        """The effect of each word of a text on the log-odds of a class."""
        words = list(WORD.finditer(text))
        # Of a longer text the words that are read, or else leaving one out would bring another in.
        count = bisect.bisect_right(range(len(words)), False, key=lambda place: self.is_cut(text[: words[place].end()]))
        if count < len(words):
            text = text[: words[count].start()]
        effects: list[WordEffect] = []
        [whole] = self._log_odds([text], label, batch_size)
        for first in range(0, count, _AT_ONCE):
            some = words[first : min(first + _AT_ONCE, count)]
            without = [text[: word.start()] + text[word.end() :] for word in some]
            rest = self._log_odds(without, label, batch_size)
            effects += [WordEffect(w[0], w.start(), float(whole - odds)) for w, odds in zip(some, rest, strict=True)]
        return effects

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than the model reads."""
        [ids] = encode_texts(self.tokenizer, [self._normalized(text)], self.settings.max_length + 1)
        return len(ids) > self.settings.max_length

    def _log_odds(self, texts: Sequence[str], label: int, batch_size: int) -> Float[np.ndarray, "n"]:
        found = self._predict(texts, batch_size, None).astype(np.float64)
        for_it, against = found[:, label], np.delete(found, label, axis=1).sum(axis=1)
        least = np.finfo(np.float32).tiny
        return np.log(np.maximum(for_it, least)) - np.log(np.maximum(against, least))

    def probabilities(
        self, texts: Sequence[str], *, batch_size: int = 64, report: Report | None = None
    ) -> Float[np.ndarray, "n C"]:
        """The probability of each class for each text; arguments and errors are those of `classify`."""
        self.check(texts)
        check_batch_size(batch_size)
        return self._predict(texts, batch_size, report)

    def _normalized(self, text: str) -> str:
        return text.lower() if self.settings.lowercase else text

    def _predict(self, texts: Sequence[str], batch_size: int, report: Report | None) -> Float[np.ndarray, "n C"]:
        """`probabilities` of any texts, blank ones too."""
        ids = encode_texts(self.tokenizer, list(map(self._normalized, texts)), self.settings.max_length)
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
