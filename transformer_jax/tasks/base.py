"""The contract between a task and the training loop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Key

from transformer_jax.config import Config
from transformer_jax.data.pipeline import ALONE, Batches, Example, Share
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.losses import Batch, Params, Sums
from transformer_jax.sharding import make_mesh, own_rows, row_shards
from transformer_jax.system import distributed


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
    """What a trained model must know besides its parameters. Before the first evaluation the loop adds what the model
    of `config.init_from` knows beyond that."""
    data_name: str
    """What the model is trained on, for its card."""
    notes: list[str]
    """What a person should know of the data, a line each."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores of an `Evaluation` that are numbers."""
        ...

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        """Those of `metrics` of which less is better."""
        ...

    def __init__(self, config: Config, tokenizer_files: dict[str, bytes] | None) -> None: ...

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters; may be jitted."""
        ...

    def loss(self, params: Params, batch: Batch, key: Key[Array, ""] | None) -> Sums:
        """See `steps.LossFn`."""
        ...

    def evaluate(self, params: Params, *, final: bool) -> Evaluation:
        """Score on validation data: with a quick search during training, with the configured one if `final`.

        The parameters come with a set of tensors for each layer, whatever `model_config.scan_layers` says. With several
        processes, all are called, and the parameters are spread over the devices of all: `processes.local_copy` makes
        them whole on each, and `processes.deal` shares out the work. The scores of the first process count.
        """
        ...


def make_batches(
    config: Config,
    records: Sequence[Any],
    encode: Callable[[list[Any]], list[Example]],
    collate: Callable[[list[list[Example]], int, int], Any],
    *,
    longest: int | None = None,
) -> Batches:
    """Batches of a set of records as the fields of `config.data` say, for the mesh of `config`.

    Args:
        config: of the experiment.
        records: see `Batches`, like the next two.
        encode: records to examples.
        collate: rows of examples to a batch.
        longest: of validation examples, all of which count however long they are, in the order given. None: training.
    """
    data = config.data
    mesh = make_mesh(config.mesh)
    share = ALONE
    if distributed.process_count() > 1:
        exchange = distributed.Exchange()
        share = Share(
            distributed.process_index(),
            distributed.process_count(),
            partial(own_rows, mesh),
            exchange.gather,
            exchange.close,
        )
    slots = data.tokens_per_batch
    if longest is not None:
        slots = max(slots, longest, data.row_length)
    return Batches(
        records,
        encode,
        collate,
        batching=data.batching,
        tokens_per_batch=slots,
        row_length=data.row_length,
        bucket_lengths=data.bucket_lengths,
        max_length=data.max_length if longest is None else longest,
        row_multiple=row_shards(mesh) * config.optim.accumulate_steps,
        share=share,
        seed=config.seed,
        shuffle=longest is None,
    )
