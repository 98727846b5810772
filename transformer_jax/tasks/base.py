"""The contract between a task and the training loop."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.packing import Example
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.losses import Batch, LossFn, Params, Sums

Record = Any
"""One record of a data set, such as a pair of sentences."""
Prediction = Any
"""The output for one validation record: any value that `json` can write."""


class Evaluation(NamedTuple):
    """Result of an evaluation on the validation data."""

    scores: dict[str, float | str]
    """Metrics by name, and the signatures of those that have one."""
    samples: list[tuple[str, str, str]]
    """(input, output, reference) of validation records, in order."""


@runtime_checkable
class Task(Protocol):
    """Data, loss and metrics of one kind of model, made by `task(config, tokenizer_files)`.

    A task does not deal with devices, meshes or processes: `training` builds the batches, places the arrays and shares
    out the work.
    """

    model_config: ModelConfig
    """The model's sizes, vocabularies included."""
    graphdef: nnx.GraphDef
    """The model's structure without parameters."""
    tokenizer_files: dict[str, bytes]
    """Files to store with the model."""
    settings: dict[str, Any]
    """Settings to store with the model. Before the first evaluation `training` adds those of the model named by
    `config.init_from` that the task does not set itself."""
    data_name: str
    """Name of the data set, for the model's card."""
    notes: list[str]
    """Facts about the data for the log, one per line."""

    @property
    def train(self) -> Sequence[Record]:
        """Training records."""
        ...

    @property
    def validation(self) -> Sequence[Record]:
        """Validation records. All of them count, however long."""
        ...

    @property
    def validation_examples(self) -> Sequence[Example]:
        """Their encoding."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the numeric scores of an `Evaluation`."""
        ...

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        """Those of `metrics` that improve by getting smaller."""
        ...

    @property
    def eval_loss(self) -> LossFn | None:
        """Loss of a validation batch, without smoothing; None if `score` computes the loss from the predictions."""
        ...

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None: ...

    def encode(self, records: list[Record]) -> list[Example]:
        """Token ids of records: one int32 vector per side."""
        ...

    def collate(self, rows: list[list[Example]], row_length: int, num_rows: int) -> Batch:
        """Rows of examples as a batch of `num_rows` rows; see `data.pipeline.Batches`."""
        ...

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Draw the initial parameters; can be jitted."""
        ...

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        """Training loss; see `nn.losses.LossFn`."""
        ...

    def flops(self, batch: Batch) -> float:
        """FLOPs of the matrix products of one training step on this batch, padding included."""
        ...

    def predict(self, params: Params, numbers: Sequence[int], *, final: bool) -> list[Prediction]:
        """Outputs for some validation records, computed on the devices that hold `params`.

        Args:
            params: the parameters, with one set of tensors per layer whatever `model_config.scan_layers` says.
            numbers: indices into `validation`.
            final: whether to search as configured; otherwise with a quick search.
        """
        ...

    def score(self, predictions: list[Prediction], sums: dict[str, float] | None) -> Evaluation:
        """Metrics of all predictions.

        Args:
            predictions: one per validation record, in order.
            sums: `eval_loss` summed over the validation data, or None without an `eval_loss`.
        """
        ...
