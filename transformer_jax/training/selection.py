"""Which parameters a run leaves behind: those of its last step, of its best one or a mean, by their scores."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.nn import unstack_layers
from transformer_jax.nn.losses import Params
from transformer_jax.system import distributed
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.progress import Clock
from transformer_jax.training.step import TrainState


class Judged(NamedTuple):
    """How some parameters did on the validation data."""

    score: float
    """The metric that a run goes by; more is better."""
    evaluation: Evaluation


class Choice(NamedTuple):
    """The best of some candidates."""

    name: str
    params: Params
    judged: Judged


def judge(task: Task, metric: str, params: Params, *, final: bool) -> Judged:
    """The task's evaluation, with the scores of the first process, so that all decide alike."""
    evaluation = task.evaluate(params, final=final)
    evaluation = evaluation._replace(scores=distributed.broadcast(evaluation.scores))
    value = float(evaluation.scores[metric])
    return Judged(-value if metric in task.lower_is_better else value, evaluation)


def choose(
    candidates: Mapping[str, Callable[[], Params]],
    judge: Callable[[Params], Judged],
    clock: Clock,
    tell: Callable[[str, Evaluation | None], None],
) -> Choice:
    """The candidate with the best score, the first of equals.

    Args:
        candidates: by name, what gives their parameters; the first is judged in any case, the others if there is time.
        judge: gives the score of some parameters.
        clock: of the run.
        tell: is called with each name and its evaluation, or None if there was no time for one.
    """
    best: Choice | None = None
    seconds = 0.0
    for name, params_of in candidates.items():
        if best is not None and not distributed.broadcast(clock.has(1.5 * seconds)):
            tell(name, None)
            continue
        started = time.monotonic()
        params = params_of()
        judged = judge(params)
        seconds = time.monotonic() - started
        tell(name, judged.evaluation)
        if best is None or judged.score > best.judged.score:
            best = Choice(name, params, judged)
    assert best is not None
    return best


def to_evaluate(state: TrainState) -> Params:
    """The average of the parameters, where a state has one, and the parameters otherwise."""
    return unstack_layers(state.params if state.ema_params is None else state.ema_params)


def mean_of(checkpoints: Checkpoints, steps: Sequence[int], like: Params) -> Params:
    """The mean of the parameters to evaluate of some checkpoints.

    Args:
        checkpoints: of the run.
        steps: at which they were saved.
        like: shapes and shardings.
    """
    total = checkpoints.restore_params(steps[0], like)
    # Compiled as a whole, rather than anew for each shape.
    add = jax.jit(lambda total, more: jax.tree.map(jnp.add, total, more), donate_argnums=0)
    for step in steps[1:]:
        total = add(total, checkpoints.restore_params(step, like))
    divide = jax.jit(lambda total: jax.tree.map(lambda leaf: leaf / len(steps), total))
    return unstack_layers(divide(total))
