"""The end of a run: choosing parameters on the validation data, and writing the model."""

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.config import Config
from transformer_jax.nn import unstack_layers
from transformer_jax.nn.losses import Params
from transformer_jax.system import UserError, distributed, finite
from transformer_jax.system.files import AnyPath, as_path, read_json, write_atomically
from transformer_jax.task_groups import data_paths
from transformer_jax.tasks import model_folder
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.tasks.registry import registered
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.logging import RunLog
from transformer_jax.training.setup import Run, is_checkpoint_step
from transformer_jax.training.step import UNBOUNDED_SCHEDULES, Progress, TrainState, all_finite
from transformer_jax.training.stopping import FINAL_EVALUATIONS, Clock
from transformer_jax.training.workdir import FINISHED_FILE

_WITHOUT_EFFECT = ("max_minutes", "log_every", "num_samples", "keep_checkpoints", "trackers", "log_norms")
"""Fields of `config.training` that do not change the model of a finished run."""
_LONGEST_EXAMPLE = 60


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    scores: dict[str, Any]
    """Scores of the written model on validation data; empty if the run was interrupted."""
    model: AnyPath | None
    """Folder of the written model, or None if the run was interrupted."""
    signal: int | None = None
    """The signal that interrupted the run."""


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


def finish(run: Run, log: RunLog, state: TrainState, step: int, progress: Progress, *, is_over: bool) -> Outcome:
    """Choose among the last, the best and the averaged parameters on validation data, and write the model.

    Args:
        run: the run.
        log: its log.
        state: the last state.
        step: number of updates so far.
        progress: progress of the run.
        is_over: whether the run has ended, and is not just out of time.
    """
    training, task = run.config.training, run.task
    metric = training.metric.replace("_", " ")

    def report(name: str, evaluation: Evaluation | str | None) -> None:
        if evaluation is None:
            log.say(f"  {name} is skipped for lack of time")
        elif isinstance(evaluation, str):
            log.say(f"  {name} is left out: {evaluation}")
        else:
            log.say(f"  {name}: {metric} {evaluation.scores[training.metric]:.4g}")

    if not is_over:
        log.say(f"The time is up after {step:,} of {training.num_steps:,} steps; rerun the command to train on")
    final = distributed.broadcast(run.clock.has(FINAL_EVALUATIONS / 4 * run.clock.evaluation_seconds))
    search = f", now with a beam of {run.config.decoding.beam_size}" if final and "decoding" in task.settings else ""
    log.say(f"Choosing the parameters of the model on validation data{search}:")
    choice = choose(
        _candidates(run, state, step, progress),
        partial(run.evaluator, final=final),
        partial(rank, task, training.metric),
        run.clock,
        report,
    )
    samples = choice.evaluation.samples[: training.num_samples]
    log.show_samples(samples)
    scores = choice.evaluation.scores | {"parameters": choice.name, "steps": step}
    minutes = round(run.clock.minutes(), 1)
    path = run.workdir / "model"
    params = distributed.local_copy(choice.params)
    run.owner.check()
    log.final(step, scores, {"minutes": minutes})
    if distributed.is_main():
        model_folder.save(
            path,
            task=run.config.task,
            model_config=task.model_config,
            params=params,
            tokenizer_files=task.tokenizer_files,
            settings=task.settings,
            scores=scores,
            origin={"data": task.data_name, "command": _command_line(), "minutes": minutes},
        )
        if is_over:
            shown = finite(scores | {"minutes": minutes})
            content = {"config": run.config.to_dict(), "data": _stamps(run.config), "step": step, "scores": shown}
            content["inputs"] = [source for source, _, _ in samples]
            write_atomically(run.workdir / FINISHED_FILE, (json.dumps(content) + "\n").encode())
    log.say(f"The model, {choice.name}, is in {path}, after {run.clock.minutes():.1f} minutes")
    log.say("\n".join(_next_commands(run.config.task, path, [source for source, _, _ in samples])))
    return Outcome(step, scores | {"minutes": minutes}, path)


def finished(config: Config, workdir: AnyPath) -> dict[str, Any] | None:
    """`step`, `scores` and `lines` to show of a finished run of this config in `workdir`; None: it must be run.

    Its model is intact, and the local files of its data have not been touched; they are not read.
    """
    try:
        values = read_json(workdir / FINISHED_FILE)
        config_before, step, scores = (values[name] for name in ("config", "step", "scores"))
        is_same = _relevant(config_before) == _relevant(json.loads(json.dumps(config.to_dict())))
        is_same = is_same and values["data"] == _stamps(config)
        if not is_same or not model_folder.is_intact(workdir / "model"):
            return None
        shown = f"{config.training.metric} {scores[config.training.metric]:.4g} on validation data"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    longer = "longer, raise config.training.num_steps, or" if config.optim.schedule in UNBOUNDED_SCHEDULES else "again,"
    lines = [
        f"{workdir}: finished at step {step:,}, {shown}; the model is in {workdir / 'model'}",
        f"To train {longer} choose another --workdir",
        *_next_commands(config.task, workdir / "model", values.get("inputs", [])),
    ]
    return {"step": step, "scores": scores, "lines": lines}


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    training = {name: value for name, value in config["training"].items() if name not in _WITHOUT_EFFECT}
    return {name: value for name, value in config.items() if name != "mesh"} | {"training": training}


def _stamps(config: Config) -> dict[str, list[int]]:
    """Size and time of modification of the files and folders of data on this machine, by field."""
    stamps: dict[str, list[int]] = {}
    for field, name in data_paths(config).items():
        path = as_path(name)
        if not isinstance(path, Path):
            continue
        for each in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
            with contextlib.suppress(OSError):
                status = each.stat()
                stamps[f"{field} {each}"] = [status.st_size, status.st_mtime_ns]
    return stamps


def _next_commands(task: str, model: AnyPath, inputs: Sequence[str]) -> list[str]:
    """What to do with the model: its command, on the shortest of these inputs."""
    command = registered(task).command
    if command is None:
        return [f'Use it in Python: transformer_jax.load("{model}")']
    fitting = [text for text in inputs if text.strip() and len(text) <= _LONGEST_EXAMPLE and not text.startswith("-")]
    example = [shlex.quote(min(fitting, key=len))] if fitting else []
    return ["Try it:", "  " + " ".join(["transformer-jax", command.name, "--model", shlex.quote(str(model)), *example])]


def _command_line() -> str:
    """The command that trains, as a person would write it, or the function that was called."""
    program = Path(sys.argv[0]).name
    if program not in ("transformer-jax", "train.py", "__main__.py"):
        return "transformer_jax.run"
    if program == "__main__.py":
        names = ["python", "-m", "transformer_jax"]
    else:
        names = ["python", sys.argv[0]] if program.endswith(".py") else [program]
    return shlex.join([*names, *sys.argv[1:]])


def _candidates(run: Run, state: TrainState, step: int, progress: Progress) -> Mapping[str, Callable[[], Params]]:
    """What the written model may be, by name."""
    training, checkpoints = run.config.training, run.checkpoints
    candidates: dict[str, Callable[[], Params]] = {f"step {step:,}": lambda: params_to_evaluate(state)}
    if progress.best_step not in (0, step):
        best = progress.best_step
        candidates[f"step {best:,}"] = lambda: params_to_evaluate(checkpoints.restore(best, run.abstract_state)[0])
    last = [saved for saved in checkpoints.steps() if saved == step or is_checkpoint_step(training, saved)]
    last = distributed.broadcast(last[-training.average_last :])
    if len(last) > 1:
        name = f"mean of the {len(last)} checkpoints to step {last[-1]:,}"
        candidates[name] = lambda: mean_of(checkpoints, last, run.abstract_state.params)
    return candidates
