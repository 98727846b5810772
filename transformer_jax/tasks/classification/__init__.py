"""Text classification: labelled texts, accuracy, a `TextClassifier`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from transformer_jax.system import Fraction, Range, check_fields
from transformer_jax.tasks.registry import register_task


@dataclass(frozen=True)
class ClassificationConfig:
    """The group `config.classification`."""

    extra_train: str = ""
    """A file of further training texts."""
    mask_rate: Fraction = 0.0
    """Fraction of the tokens of a training text that are hidden, drawn again in every step."""
    mask_loss: Annotated[float, Range(0)] = 0.0
    """Weight of predicting the hidden tokens (Devlin et al., 2019) beside the class, per token and per text."""

    FILES: ClassVar[tuple[str, ...]] = ("extra_train",)
    MOVED: ClassVar[dict[str, str]] = {
        "data.extra_train": "extra_train",
        "optim.mask_rate": "mask_rate",
        "optim.mask_loss": "mask_loss",
    }

    def __post_init__(self) -> None:
        check_fields(self, "config.classification.{}".format)


register_task(
    "classification",
    "transformer_jax.tasks.classification.task:ClassificationTask",
    "transformer_jax.tasks.classification.text_classifier:TextClassifier",
    config=ClassificationConfig,
    command="transformer_jax.tasks.classification.command:COMMAND",
)
