"""The training loop: config and work folder in, a trained model out."""

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import ml_collections
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.config import Config, from_config_dict
from transformer_jax.data.pipeline import Position, Prefetched
from transformer_jax.nn import stack_layers
from transformer_jax.nn.losses import Batch, Params, Sums
from transformer_jax.sharding import check_heads, make_mesh, on_mesh, shard_batch, state_shardings
from transformer_jax.system import distributed
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, as_path
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.tasks.model_folder import save
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.ending import Ending, Told, hear, tell
from transformer_jax.training.logging import RunLog, SilentLog
from transformer_jax.training.optim import make_optimizer, make_schedule
from transformer_jax.training.origin import params_of_origin
from transformer_jax.training.preparation import agree_on, check, claim_for_all, common_task
from transformer_jax.training.progress import FINAL_EVALUATIONS, Clock, Progress, Rate, Stop, stop_on_signals
from transformer_jax.training.report import describe
from transformer_jax.training.selection import Judged, choose, judge, mean_of, to_evaluate
from transformer_jax.training.step import TrainState, init_state, train_step
from transformer_jax.training.trace import traced
from transformer_jax.training.usage import counts_of, usage
from transformer_jax.training.workdir import find_origin


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    scores: dict[str, float | str]
    """Of the written model, on validation data; empty if the run was interrupted."""
    model: AnyPath | None
    """The written model's folder, or None if the run was interrupted."""
    signal: int | None = None
    """What interrupted the run."""


def run(
    config: ml_collections.ConfigDict | Config,
    workdir: str | AnyPath,
    *,
    started: float | None = None,
    notes: Sequence[str] = (),
    profile: bool = False,
) -> Outcome:
    """Train, or go on training, in `workdir`.

    Leaves there `config.json`, `tokenizer/`, `checkpoints/`, logs, and the trained model in `model/`. If the folder
    holds a run of the same config already, it goes on and ends as it would have without the interruption.

    Args:
        config: of the experiment.
        workdir: the folder, of this machine or gs://BUCKET/FOLDER.
        started: what `time.monotonic()` was when the work began, for all that tells or limits time; None: is now.
        notes: lines to be shown at the top.
        profile: leave a trace of some steps in `profile/`, see `training.trace`.

    Raises:
        UserError: for mistakes in config, data or work folder.
    """
    started = time.monotonic() if started is None else started
    config = config if isinstance(config, Config) else from_config_dict(config)
    with stop_on_signals() as stop:
        try:
            outcome = _Run(config, as_path(workdir), started, notes, profile, stop).train()
            distributed.barrier()
        except BaseException as error:
            if not stop.explains(error):
                raise
            outcome = Outcome(stop.saved_step, {}, None, stop.signal)
            if distributed.is_main():
                what = f"and saved at step {outcome.step:,}" if outcome.step else "with nothing new to save"
                print(f"Stopped {what}; the same command goes on from there.", flush=True)
            if distributed.process_count() > 1 and not stop.is_common:
                distributed.exit_all(
                    130 if stop.signal == signal.SIGINT else 0, "It was stopped; the same command goes on."
                )
    return outcome


class _Run:
    """One run: the objects that it needs, put together once."""

    def __init__(
        self,
        config: Config,
        workdir: AnyPath,
        started: float,
        notes: Sequence[str] = (),
        profile: bool = False,
        stop: Stop | None = None,
    ) -> None:
        self.config, self.workdir, self.notes = config, workdir, notes
        self.clock = Clock(started, config.training.max_minutes)
        self.stop = stop or Stop()
        self.profile_folder = workdir / "profile" if profile else None
        training = config.training
        check(config)
        agree_on(config, workdir)
        self.mesh = make_mesh(config.mesh)
        self.ending = Ending(self.stop, self.clock, self.mesh)
        origin = find_origin(config, workdir)
        check_heads(origin.model.num_heads, self.mesh)
        schedule = make_schedule(config.optim, d_model=origin.model.d_model, num_steps=training.num_steps)
        self.schedule = jax.jit(schedule)
        optimizer = make_optimizer(config.optim, schedule)
        self.task: Task = common_task(config, origin)
        if training.metric not in self.task.metrics:
            raise UserError(
                f"config.training.metric is {training.metric!r}, but must be one of {', '.join(self.task.metrics)}."
            )
        claim_for_all(workdir, config, self.task, origin)

        scans_layers = self.task.model_config.scan_layers

        def fresh(given: Params) -> TrainState:
            given = stack_layers(given) if scans_layers else given
            params = self.task.init_params(jax.random.key(config.seed)) | given
            return init_state(params, optimizer, ema=training.ema_decay > 0)

        self.origin = origin
        shapes = jax.eval_shape(fresh, origin.params)
        shardings = state_shardings(shapes, self.mesh)
        self.like = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)
        self.fresh = jax.jit(fresh, out_shardings=shardings)
        update = partial(
            on_mesh(train_step, self.mesh),
            loss_fn=self.task.loss,
            optimizer=optimizer,
            seed=config.seed,
            accumulate_steps=config.optim.accumulate_steps,
            ema_decay=training.ema_decay,
        )

        def common_train_step(state: TrainState, batch: Batch, told: Told = None) -> tuple[TrainState, Sums]:
            state, sums = update(state, batch)
            return state, sums | hear(told)

        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.step_fn = jax.jit(common_train_step, donate_argnums=0, out_shardings=(shardings, everywhere))
        keep = max(training.keep_checkpoints, training.average_last)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", keep=keep, counts=self._is_due, uninterrupted=self.stop.postponed
        )
        self.told_skipped = False
        self.program: jax.stages.Compiled | None = None
        """The step, where there is only one shape of batches."""

    def train(self) -> Outcome:
        """The loop itself."""
        training = self.config.training
        saved, progress = self._restore()
        log_type = RunLog if distributed.is_main() else SilentLog
        step = first_step = 0 if saved is None else int(saved.step)
        goes_on = step < training.num_steps and not self._out_of_patience(progress)
        batches_to_come = self.task.batches.iterate(progress.position) if goes_on else iter(())
        with (
            log_type(self.workdir, first_step=step, num_steps=training.num_steps) as log,
            self.checkpoints,
            contextlib.closing(Prefetched(batches_to_come)) as batches,
            contextlib.closing(self.task.batches),
            traced(self.step_fn, self.profile_folder, steps=training.num_steps - step) as step_fn,
            distributed.exit_if_peer_lost(),
        ):
            self._greet(log, step)
            state = self._compiled(saved)
            if step and step % training.eval_every == 0:
                self._evaluate(log, state, step, progress)  # which comes after saving, and may not have come to its end
            rate, before = Rate(), None
            while step < training.num_steps and not self._out_of_patience(progress):
                batch, progress.position = next(batches)
                counts = counts_of(batch, self.task.model_config)
                self.stop.unsaved()
                state, sums = step_fn(state, shard_batch(batch, self.mesh), self.ending.told(counts))
                step += 1
                if step == first_step + 1:
                    jax.block_until_ready(sums)
                    log.say(f"The first step was done after {self.clock.seconds():.1f} s")
                    if self.program is not None:
                        log.program(step, describe(self.program))
                if before is not None:  # a step late, so that no device waits for its host
                    rate.tokens += progress.add(self.ending.heard(before))
                before = counts | sums
                logs = step % training.log_every == 0
                evaluates = step % training.eval_every == 0
                ends = step == training.num_steps or self.ending.is_due(step)
                saves = self._is_due(step) or ends
                if logs or saves:
                    rate.tokens += progress.add(self.ending.heard(before))
                    before = None
                    _require_finite(progress, step)
                if logs:
                    self._log(log, step, progress, rate.take())
                if saves:
                    log.flush()
                    self._save(state, step, progress)
                    self.stop.saved(step)
                if evaluates:
                    with rate.paused():
                        self._evaluate(log, state, step, progress)
                if ends:
                    break
            self.checkpoints.wait()
            return self._finish(log, state, step, progress)

    def _restore(self) -> tuple[TrainState | None, Progress]:
        """The last checkpoint, or None and a fresh start."""
        latest = distributed.broadcast(self.checkpoints.latest())
        if latest is None:
            return None, Progress()
        state, metadata = self.checkpoints.restore(latest, self.like)
        progress = Progress(**{**metadata, "position": Position(*metadata["position"])})
        if progress.best_step in self.checkpoints.steps():
            self.checkpoints.protect(progress.best_step)  # the run may have been killed just before it did so
        self.clock.minutes_before = progress.minutes
        self.stop.saved(latest)
        return state, progress

    def _compiled(self, saved: TrainState | None) -> TrainState:
        """The state to begin with, once the step is compiled as well; the data is being read meanwhile."""
        steps = self.config.training.num_steps - (0 if saved is None else int(saved.step))
        blank = self.task.batches.blank() if steps > 0 else None
        with ThreadPoolExecutor(1) as thread:
            compiling = None if blank is None else thread.submit(self._compile_step, blank)
            state = self._fresh() if saved is None else saved
            if compiling is not None:
                compiling.result()
        return state

    def _compile_step(self, blank: Batch) -> None:
        """Make `step_fn` ready for batches of this shape."""
        self.program = self.step_fn.lower(self.like, shard_batch(blank, self.mesh), tell({}, self.mesh)).compile()

    def _fresh(self) -> TrainState:
        # A run may have begun, and yet have no checkpoint any more.
        given = self.origin.params or params_of_origin(self.config, self.origin)
        self.origin = dataclasses.replace(self.origin, params={})
        return self.fresh(given)

    def _save(self, state: TrainState, step: int, progress: Progress) -> None:
        progress.minutes = self.clock.minutes()
        self.checkpoints.save(step, state, dataclasses.asdict(progress) | {"position": list(progress.position)})

    def _greet(self, log: RunLog, step: int) -> None:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.like.params))
        devices = f"{self.mesh.size} {jax.devices()[0].device_kind} device{'s' if self.mesh.size > 1 else ''}"
        log.say(f"{self.workdir}: {self.config.task}, {'; '.join(self.task.notes)}")
        log.say(
            f"{count:,} parameters, {self.config.data.tokens_per_batch:,} token slots a side and step, on {devices}"
        )
        for note in self.notes:
            log.say(note)
        if step:
            log.say(f"Going on from step {step:,}")
        elif self.config.init_from:
            log.say(f"Starting from the model in {self.config.init_from}")

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is saved at this step in any case; the one of an evaluation may be the best."""
        training = self.config.training
        return step % training.checkpoint_every == 0 or step % training.eval_every == 0

    def _log(self, log: RunLog, step: int, progress: Progress, tokens_per_second: float) -> None:
        skipped = self.task.batches.skipped
        if skipped and not self.told_skipped:
            log.say(f"Left out {skipped:,} examples longer than config.data.max_length, so far")
            self.told_skipped = True
        sums, progress.unlogged = progress.unlogged, {}
        values = {
            "loss": sums["loss"] / max(sums["weight"], 1.0),
            "lr": float(self.schedule(step - 1)),
            "grad_norm": sums["grad_norm"] / sums["steps"],
            "tokens": sums["weight"],
            "fill": sums["fill"] / sums["steps"],
            "epoch": progress.position.epoch,
        }
        timing = {"tokens_per_second": tokens_per_second, "minutes": self.clock.minutes()}
        log.train(step, values, timing | usage(sums, tokens_per_second, self.mesh))

    def _evaluate(self, log: RunLog, state: TrainState, step: int, progress: Progress) -> None:
        started = time.monotonic()
        score, evaluation = self._judge(to_evaluate(state), final=False)
        seconds = self.clock.evaluation_seconds = time.monotonic() - started
        log.evaluation(step, evaluation.scores, {"seconds": seconds, "minutes": self.clock.minutes()})
        log.samples(step, evaluation.samples[: self.config.training.num_samples])
        if score > progress.best_score:
            progress.best_score, progress.best_step, progress.stale = score, step, 0
            self.checkpoints.protect(step)
        else:
            progress.stale += 1

    def _judge(self, params: Params, *, final: bool) -> Judged:
        return judge(self.task, self.config.training.metric, params, final=final)

    def _finish(self, log: RunLog, state: TrainState, step: int, progress: Progress) -> Outcome:
        """Choose among the last, the best and the averaged parameters on validation data, and write the model."""
        training = self.config.training

        def tell(name: str, evaluation: Evaluation | None) -> None:
            if evaluation is None:
                log.say(f"{name} is not tried, for want of time")
            else:
                log.say(f"{name}: {training.metric} {evaluation.scores[training.metric]:.4g} on validation data")

        thorough = distributed.broadcast(self.clock.has(FINAL_EVALUATIONS / 2 * self.clock.evaluation_seconds))
        candidates = self._candidates(state, step, progress)
        choice = choose(candidates, partial(self._judge, final=thorough), self.clock, tell)
        evaluation = choice.judged.evaluation
        for source, output, reference in evaluation.samples[: training.num_samples]:
            log.say(f"  {source}\n    {output}\n    {'as the reference' if output == reference else reference}")
        minutes = round(self.clock.minutes(), 1)
        scores = evaluation.scores | {"parameters": choice.name, "steps": step, "minutes": minutes}
        path = self.workdir / "model"
        params = distributed.local_copy(choice.params)
        if distributed.is_main():
            save(
                path,
                task=self.config.task,
                model_config=self.task.model_config,
                params=params,
                tokenizer_files=self.task.tokenizer_files,
                settings=self.task.settings,
                scores=scores,
                origin={"data": self.task.data_name, "command": shlex.join(["python", *sys.argv])},
            )
        log.say(f"The model is in {path}, after {self.clock.minutes():.1f} minutes")
        return Outcome(step, scores, path)

    def _candidates(self, state: TrainState, step: int, progress: Progress) -> dict[str, Callable[[], Params]]:
        """By name, what the written model may be."""
        candidates: dict[str, Callable[[], Params]] = {f"step {step:,}": lambda: to_evaluate(state)}
        if progress.best_step not in (0, step):
            best = progress.best_step
            candidates[f"step {best:,}"] = lambda: to_evaluate(self.checkpoints.restore(best, self.like)[0])
        last = [saved for saved in self.checkpoints.steps() if saved == step or self._is_due(saved)]
        last = distributed.broadcast(last[-self.config.training.average_last :])
        if len(last) > 1:
            name = f"mean of the {len(last)} checkpoints to step {last[-1]:,}"
            candidates[name] = lambda: mean_of(self.checkpoints, last, self.like.params)
        return candidates

    def _out_of_patience(self, progress: Progress) -> bool:
        return 0 < self.config.training.patience <= progress.stale


def _require_finite(progress: Progress, step: int) -> None:
    """Stop before a checkpoint of NaN takes the place of a good one."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
        value = progress.unlogged[name]
        if not math.isfinite(value):
            raise UserError(
                f"The {what} became {value} by step {step:,}; lower config.optim.lr, raise config.optim.warmup_steps "
                "or set config.optim.clip_norm, and train in another --workdir."
            )
