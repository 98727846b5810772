"""Evaluating parameters on the validation data, and choosing those that a run leaves behind."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from transformer_jax.data.pipeline import Batches
from transformer_jax.nn import stack_layers, unstack_layers
from transformer_jax.nn.losses import Params, eval_step
from transformer_jax.sharding import on_mesh, shard_batch, standard_numerics, state_shardings
from transformer_jax.system import UserError, distributed
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.step import TrainState, all_finite
from transformer_jax.training.stopping import Clock


class Evaluator:
    """Evaluates parameters of a task over all devices and processes; made by `setup.make_evaluator`."""

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


class Rank(NamedTuple):
    """How good an evaluation is; higher is better, and NaN is worst."""

    score: float
    """The metric that a run goes by, negated if lower is better."""
    tie: float
    """The loss, negated: BLEU may be 0 for long while a model learns. 0 for tasks without a loss."""


def rank(task: Task, metric: str, evaluation: Evaluation) -> Rank:
    """The rank of an evaluation."""

    def value(name: str, sign: float) -> float:
        number = sign * float(evaluation.scores[name])
        return -math.inf if math.isnan(number) else number

    tie = value("loss", -1.0) if "loss" in evaluation.scores else 0.0
    return Rank(value(metric, -1.0 if metric in task.lower_is_better else 1.0), tie)


class Choice(NamedTuple):
    """The best of some candidates."""

    name: str
    params: Params
    evaluation: Evaluation


def choose(
    candidates: Mapping[str, Callable[[], Params]],
    evaluate: Callable[[Params], Evaluation],
    rank: Callable[[Evaluation], Rank],
    clock: Clock,
    report: Callable[[str, Evaluation | str | None], None],
) -> Choice:
    """The candidate that ranks highest, the first among equals.

    Args:
        candidates: functions that return parameters, by name. All but the first are skipped when time is short; those
            that raise a `UserError`, since a checkpoint is gone or damaged, and those not finite, or whose outputs are
            not numbers, are left out.
        evaluate: evaluates parameters.
        rank: rank of an evaluation; higher is better.
        clock: clock of the run.
        report: called with each name and its evaluation, the reason why it was left out, or None if time was short.

    Raises:
        UserError: if no candidate is left.
    """
    best: Choice | None = None
    seconds = 0.0
    for name, params_of in candidates.items():
        if best is not None and not distributed.broadcast(clock.has(1.5 * seconds)):
            report(name, None)
            continue
        started = time.monotonic()
        try:
            params = params_of()
            if not all_finite(params):
                raise UserError("a parameter is not finite")
            candidate = Choice(name, params, evaluate(params))
        except UserError as error:
            report(name, str(error))
            continue
        seconds = time.monotonic() - started
        report(name, candidate.evaluation)
        if best is None or rank(candidate.evaluation) > rank(best.evaluation):
            best = candidate
    if best is None:
        raise UserError("There are no sound parameters left to write as a model; train in another --workdir.")
    return best


def params_to_evaluate(state: TrainState) -> Params:
    """The moving average of the parameters if the state has one, else the parameters; one set of tensors per layer."""
    return unstack_layers(state.params if state.ema_params is None else state.ema_params)


def mean_of(checkpoints: Checkpoints, steps: Sequence[int], abstract_params: Params) -> Params:
    """The mean of the parameters of some checkpoints, one set of tensors per layer (section 6.1).

    Args:
        checkpoints: the checkpoints of the run.
        steps: steps to average.
        abstract_params: shapes and shardings.
    """
    total = checkpoints.restore_params(steps[0], abstract_params)
    # One program, instead of one per shape.
    add = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0)
    for step in steps[1:]:
        total = add(total, checkpoints.restore_params(step, abstract_params))
    divide = jax.jit(lambda total: jax.tree.map(lambda leaf: leaf / len(steps), total))
    return unstack_layers(divide(total))
