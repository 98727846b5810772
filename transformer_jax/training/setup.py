"""Everything a run needs, built once before its first step."""

import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.config import Config, TrainingConfig
from transformer_jax.data.packing import Example
from transformer_jax.data.pipeline import ALONE, Batches, Share, check_row_fits
from transformer_jax.nn import stack_layers
from transformer_jax.nn.losses import Batch, Params, Sums, eval_step
from transformer_jax.sharding import (
    check_heads,
    make_mesh,
    on_mesh,
    own_rows,
    row_shards,
    shard_batch,
    standard_numerics,
    state_shardings,
)
from transformer_jax.system import UserError, distributed
from transformer_jax.system.files import AnyPath, write_atomically
from transformer_jax.system.ownership import Ownership
from transformer_jax.task_groups import DATA_FILES
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.tasks.model_folder import check_savable
from transformer_jax.tasks.registry import task_class
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.step import TrainState, init_state, make_optimizer, make_schedule, train_step
from transformer_jax.training.stopping import Clock, HostValues, StopFlags, StopSignal, mean_over_devices
from transformer_jax.training.workdir import (
    Origin,
    check_identity,
    claim,
    find_origin,
    has_begun,
    identity_of,
    task_from,
)

SHARED_SECONDS = 20.0
"""Network file systems may take this long to show a new file to other hosts."""


class Evaluator:
    """Evaluates parameters of a task over all devices and processes; made by `make_evaluator`."""

    def __init__(self, task: Task, batches: Batches | None, mesh: Mesh) -> None:
        """Prepare, but compile nothing yet.

        Args:
            task: the task to evaluate.
            batches: its validation batches, or None if it has no `eval_loss`.
            mesh: all devices of the run.
        """
        self.batches = batches
        self._task, self._mesh = task, mesh
        self._eval_step = jax.jit(partial(on_mesh(eval_step, mesh), loss_fn=task.eval_loss))

    @standard_numerics()
    def __call__(self, params: Params, *, final: bool) -> Evaluation:
        """Scores and samples, the same on all processes.

        Args:
            params: the parameters, with one set of tensors per layer.
            final: whether to search as configured; otherwise with a quick search.
        """
        predict = partial(self._task.predict, distributed.local_copy(params), final=final)
        predictions = distributed.parallel_map(predict, range(len(self._task.validation)))
        evaluation = self._task.score(predictions, self.loss_sums(params))
        return evaluation._replace(scores=distributed.broadcast(evaluation.scores))

    @cached_property
    def num_targets(self) -> int:
        """Number of targets of the validation data, as the loss weighs them: tokens, or texts of a classifier."""
        return sum(len(example[-1]) for example in self._task.validation_examples)

    @standard_numerics()
    def loss_sums(self, params: Params) -> dict[str, float] | None:
        """The task's `eval_loss` summed over the validation data, or None if it has none."""
        if self.batches is None:
            return None
        params = stack_layers(params) if self._task.model_config.scan_layers else params
        params = jax.device_put(params, state_shardings(params, self._mesh))
        totals: dict[str, float] = {}
        for batch, _ in self.batches.iterate(epochs=1):
            for name, value in self._eval_step(params, shard_batch(batch, self._mesh)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals


@dataclass
class Run:
    """The parts of a run."""

    config: Config
    workdir: AnyPath
    origin: Origin
    task: Task
    mesh: Mesh
    batches: Batches
    """The training batches."""
    evaluator: Evaluator
    schedule: Callable[[int], Any]
    """Jitted: learning rate by the number of updates so far."""
    abstract_state: TrainState
    """The state as `jax.ShapeDtypeStruct`s with shardings."""
    init_state: Callable[[Params], TrainState]
    """Jitted: the first state; takes the parameters that are not drawn."""
    train_step: Any
    """Jitted: (state, batch, values of `StopFlags.for_step`) to (state, sums); donates the state."""
    checkpoints: Checkpoints
    clock: Clock
    stop: StopSignal
    stop_flags: StopFlags
    owner: Ownership
    """Owns `workdir`, on the first process; asked before anything there is replaced."""


@standard_numerics()
def setup(
    config: Config,
    workdir: AnyPath,
    *,
    started: float,
    stop: StopSignal | None = None,
    owner: Ownership | None = None,
) -> Run:
    """Check the config, read the data, claim `workdir` and build the jitted functions.

    Args:
        config: the experiment.
        workdir: folder of the run.
        started: `time.monotonic()` at program start.
        stop: handler of signals; default: one that never receives any.
        owner: has acquired `workdir`; default: one that owns nothing and never objects.

    Raises:
        UserError: for mistakes in config, data or work folder, on all processes alike; nothing is written before all
            checks have passed.
    """
    training, optim = config.training, config.optim
    clock, stop = Clock(started, training.max_minutes), stop or StopSignal()
    check(config)
    agree_on(config, workdir)
    mesh = make_mesh(config.mesh)
    origin = find_origin(config, workdir)
    check_heads(origin.model.num_heads, mesh)
    schedule = make_schedule(optim, d_model=origin.model.d_model, num_steps=training.num_steps)
    optimizer = make_optimizer(optim, schedule)
    task = common_task(config, origin)
    batches = train_batches(task, config, mesh)
    if distributed.process_count() > 1:
        distributed.assert_equal({"The data": task.notes, "The digest of the training data": batches.digest()})
    check_savable(config.task, task.model_config, task.settings, task.tokenizer_files)
    identity = identity_of(task)
    check_identity(workdir, config, identity)
    if training.metric not in task.metrics:
        raise UserError(f"config.training.metric is {training.metric!r}, but must be one of {', '.join(task.metrics)}.")

    @standard_numerics()
    def make_state(given: Params) -> TrainState:
        given = stack_layers(given) if task.model_config.scan_layers else given
        params = task.init_params(jax.random.key(config.seed)) | given
        return init_state(params, optimizer, ema=training.ema_decay > 0)

    shapes = jax.eval_shape(make_state, origin.params)
    shardings = state_shardings(shapes, mesh)
    abstract_state = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
    update = partial(
        on_mesh(train_step, mesh),
        loss_fn=task.loss,
        optimizer=optimizer,
        seed=config.seed,
        accumulate_steps=optim.accumulate_steps,
        ema_decay=training.ema_decay,
        skip_nonfinite=training.nonfinite == "skip",
        log_norms=training.log_norms,
    )

    def common_train_step(state: TrainState, batch: Batch, values: HostValues = None) -> tuple[TrainState, Sums]:
        state, sums = update(state, batch)
        return state, sums | mean_over_devices(values)

    evaluator = make_evaluator(task, config, mesh)
    claim_for_all(workdir, config, task, origin, identity)
    replicated = NamedSharding(mesh, PartitionSpec())
    return Run(
        config=config,
        workdir=workdir,
        origin=origin,
        task=task,
        mesh=mesh,
        batches=batches,
        evaluator=evaluator,
        schedule=jax.jit(schedule),
        abstract_state=abstract_state,
        init_state=jax.jit(make_state, out_shardings=shardings),
        train_step=jax.jit(common_train_step, donate_argnums=0, out_shardings=(shardings, replicated)),
        checkpoints=Checkpoints(
            workdir / "checkpoints",
            keep=max(training.keep_checkpoints, training.average_last),
            is_scheduled=partial(is_checkpoint_step, training),
            uninterrupted=stop.deferred,
        ),
        clock=clock,
        stop=stop,
        stop_flags=StopFlags(stop, clock, mesh),
        owner=owner or Ownership(workdir),
    )


def is_checkpoint_step(training: TrainingConfig, step: int) -> bool:
    """Whether a checkpoint is scheduled at `step`; each evaluation has one, since it may be the best."""
    return step % training.checkpoint_every == 0 or step % training.eval_every == 0


def train_batches(task: Task, config: Config, mesh: Mesh) -> Batches:
    """This process's part of the training batches of a task.

    Raises:
        UserError: if the fields of `config.data` contradict each other.
    """
    return _batches(config, mesh, task.train, task.encode, task.collate)


def make_evaluator(task: Task, config: Config, mesh: Mesh | None = None) -> Evaluator:
    """The function that evaluates parameters of a task: `make_evaluator(task, config)(params, final=True)`.

    Args:
        task: the task to evaluate.
        config: the config that the task was made with.
        mesh: all devices of the run; default: the mesh of `config`.
    """
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    if task.eval_loss is None:
        return Evaluator(task, None, mesh)
    examples = task.validation_examples
    longest = max(len(side) for example in examples for side in example)
    return Evaluator(task, _batches(config, mesh, examples, list, task.collate, longest=longest), mesh)


def _batches(
    config: Config,
    mesh: Mesh,
    records: Sequence[Any],
    encode: Callable[[list[Any]], list[Example]],
    collate: Callable[[list[list[Example]], int, int], Batch],
    *,
    longest: int | None = None,
) -> Batches:
    """Batches for training or, given the `longest` example, for evaluation: in order, none left out."""
    data = config.data
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


def check(config: Config) -> None:
    """Refuse what would otherwise fail only after the data have been read.

    Raises:
        UserError: naming the field.
    """
    data, metric = config.data, config.training.metric
    for field in itertools.chain.from_iterable(DATA_FILES.values()):
        name = field.removeprefix("data.")
        if getattr(data, name) and data.name != "text":
            raise UserError(f"config.{field} is set, but config.data.name is {data.name!r}; set that to text.")
    check_row_fits(data.batching, data.tokens_per_batch, data.row_length, data.max_length)
    metrics = getattr(task_class(config), "metrics", None)
    if isinstance(metrics, tuple) and metric not in metrics:
        raise UserError(f"config.training.metric is {metric!r}, but must be one of {', '.join(metrics)}.")


def agree_on(config: Config, workdir: AnyPath) -> None:
    """Refuse to start if other processes have another config or another work folder.

    Raises:
        UserError: on all processes alike.
    """
    if jax.process_count() != distributed.process_count():
        raise UserError(
            f"JAX finds {jax.process_count()} processes here, but only {distributed.process_count()} met; start all "
            "of them with --distributed, or with --coordinator, --num_processes and --process_id."
        )
    if distributed.process_count() == 1:
        return
    distributed.assert_equal({"--workdir": str(workdir), **_fields(config.to_dict(), "config")})
    _wait_to_share(
        lambda: len(set(distributed.all_gather(has_begun(workdir)))) == 1,
        f"{workdir} holds a run at some processes only",
    )


def common_task(config: Config, origin: Origin) -> Task:
    """The task, with the same tokenizer on all processes: where one is trained, the first process does so.

    Raises:
        UserError: if the data can't be read.
    """
    if origin.tokenizer_files is None and not distributed.is_main():
        origin = dataclasses.replace(origin, tokenizer_files=distributed.broadcast_files(None))
        return task_from(config, origin)
    task = task_from(config, origin)
    if origin.tokenizer_files is None:
        distributed.broadcast_files(task.tokenizer_files)
    return task


def claim_for_all(
    workdir: AnyPath, config: Config, task: Task, origin: Origin, identity: Mapping[str, Any] | None = None
) -> None:
    """Claim `workdir` on the first process, and check that the others see the same folder.

    Raises:
        UserError: if the folder can't be used, or is not shared by all.
    """
    if distributed.is_main():
        claim(workdir, config, task, origin, identity)
    if distributed.process_count() == 1:
        return
    # A name that no other folder has.
    mark = workdir / distributed.broadcast(f".{secrets.token_hex(8)}")
    if distributed.is_main():
        write_atomically(mark, b"")
    distributed.barrier()
    _wait_to_share(mark.exists, f"{workdir} of this process is not that of process 0")
    distributed.barrier()
    if distributed.is_main():
        mark.unlink(missing_ok=True)


def _wait_to_share(is_shared: Callable[[], bool], otherwise: str) -> None:
    """Wait until the work folder looks the same to all processes; `otherwise` is the error message if it never does."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not is_shared():
        if time.monotonic() > deadline:
            raise UserError(
                f"{otherwise}; --workdir must be a folder that all share, such as an NFS mount, or gs://BUCKET/FOLDER."
            )
        time.sleep(0.5)


def _fields(group: dict[str, Any], name: str) -> dict[str, Any]:
    """All fields of a group and its subgroups, by full name."""
    fields: dict[str, Any] = {}
    for key, value in group.items():
        fields |= _fields(value, f"{name}.{key}") if isinstance(value, dict) else {f"{name}.{key}": value}
    return fields
