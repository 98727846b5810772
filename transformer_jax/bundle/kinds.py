"""What a trained model can be: the class that each task's folder is loaded as."""

from typing import Any, Protocol

from transformer_jax.bundle.classifier import TextClassifier
from transformer_jax.bundle.couplet_writer import CoupletWriter
from transformer_jax.bundle.stacks import TransformerStacks
from transformer_jax.bundle.translator import Translator
from transformer_jax.data.tokenizers import TokenizerPair
from transformer_jax.models import ModelConfig


class TrainedModel(Protocol):
    """What `load` makes of a folder; `Seq2SeqModel` and `TextClassifier` are such."""

    settings_type: type[Any]
    """A frozen dataclass with a default for each field, and `title` and `limits` for the model's card."""
    model_type: type[Any]
    """An NNX module, made by `model_type(model_config, rngs=...)`."""

    def __init__(self, model_config: ModelConfig, params: Any, tokenizer: TokenizerPair | None, settings: Any) -> None:
        """Put the parts of a folder together; there is no tokenizer where the model has no vocabulary."""


MODELS: dict[str, type[TrainedModel]] = {
    "translation": Translator,
    "classification": TextClassifier,
    "couplet": CoupletWriter,
    "transformer": TransformerStacks,
}
"""By the name of the task; `register_task` adds to it."""
