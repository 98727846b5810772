"""What a trained model can be: the class that each task's folder is loaded as."""

from typing import Any, Protocol, runtime_checkable

from transformer_jax.bundle.classifier import TextClassifier
from transformer_jax.bundle.couplet_writer import CoupletWriter
from transformer_jax.bundle.stacks import TransformerStacks
from transformer_jax.bundle.translator import Translator
from transformer_jax.models import ModelConfig


@runtime_checkable
class ModelClass(Protocol):
    """What `load` makes an object of a folder with: a class, such as `Translator` or `TextClassifier`."""

    @property
    def settings_type(self) -> Any:
        """A frozen dataclass with a default for each field, and `title` and `limits` for the model's card."""

    @property
    def model_type(self) -> Any:
        """An NNX module, made by `model_type(model_config, rngs=...)`."""

    def __call__(self, model_config: ModelConfig, params: Any, tokenizer: Any, settings: Any) -> Any:
        """Put the parts of a folder together; `tokenizer` is a `TokenizerPair`, or None without a vocabulary."""


MODELS: dict[str, ModelClass] = {
    "translation": Translator,
    "classification": TextClassifier,
    "couplet": CoupletWriter,
    "transformer": TransformerStacks,
}
"""By the name of the task; `register_task` adds to it."""
