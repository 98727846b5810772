"""The contract between a task and the training loop."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.batching import Batches
from transformer_jax.models import ModelConfig
from transformer_jax.steps import Batch, Params, Sums


class Evaluation(NamedTuple):
    """What one look at the validation data gave."""

    scores: dict[str, float | str]
    """By name: numbers, and the signatures of those that have one."""
    samples: list[tuple[str, str, str]]
    """Some (input, output, reference)."""


@runtime_checkable
class Task(Protocol):
    """Data, loss and metrics of one kind of model; the loop knows nothing else of it."""

    batches: Batches
    """Of the training data."""
    model_config: ModelConfig
    """With the sizes of the vocabularies filled in."""
    graphdef: nnx.GraphDef
    """The structure of the model, without parameters."""
    tokenizer_files: dict[str, bytes]
    """To be stored with the model."""
    settings: dict[str, Any]
    """What a trained model must know besides its parameters."""
    notes: list[str]
    """What a person should know of the data, a line each."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores of an `Evaluation` that are numbers."""
        ...

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None: ...

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters; may be jitted."""
        ...

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        """See `steps.LossFn`."""
        ...

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Score on validation data: with a quick search during training, with the configured one if `final`."""
        ...
