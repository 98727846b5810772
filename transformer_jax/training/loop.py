"""The training loop: config and work folder in, a trained model out. `train` reads top-down."""

import contextlib
import dataclasses
import errno
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_collections

from transformer_jax.config import Config, from_config_dict
from transformer_jax.data.pipeline import Position, Prefetched
from transformer_jax.nn.losses import Batch
from transformer_jax.sharding import shard_batch, standard_numerics
from transformer_jax.system import NotNumbersError, ResumableError, UserError, distributed
from transformer_jax.system.files import AnyPath, as_path
from transformer_jax.system.runtime import show
from transformer_jax.training.evaluation import Outcome, finish, finished, params_to_evaluate, rank
from transformer_jax.training.logging import RunLog, SilentLog
from transformer_jax.training.setup import Run, agree_on, is_checkpoint_step, setup
from transformer_jax.training.step import Progress, TrainState, all_finite, norms_of
from transformer_jax.training.stopping import StopSignal, host_values, stop_on_signals
from transformer_jax.training.usage import Rate, batch_stats, describe, traced, usage
from transformer_jax.training.workdir import owned, params_of_origin

OnEvaluation = Callable[[int, Mapping[str, float | str]], None]

MAX_SKIPPED = 100
"""A run that skips as many steps in a row, for their loss or gradient is not finite, ends."""
SHOWN_RECORDS = 10
"""Number of records of a batch that a sentence names."""
_REMEDY = "lower config.optim.lr, raise config.optim.warmup_steps or set config.optim.clip_norm"


def run(
    config: ml_collections.ConfigDict | Config,
    workdir: str | AnyPath,
    *,
    started: float | None = None,
    notes: Sequence[str] = (),
    profile: bool = False,
    verbose: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Outcome:
    """Train, or resume training, in `workdir`.

    Writes `config.json`, `tokenizer/`, `checkpoints/`, logs, and the trained model in `model/`. If the folder already
    holds a run of the same config, the run resumes and ends as it would have without the interruption. If that run has
    finished, its result is returned.

    Args:
        config: the experiment.
        workdir: a local folder or gs://BUCKET/FOLDER.
        started: `time.monotonic()` at program start, for elapsed time and `max_minutes`; default: now.
        notes: lines to show at the top of the log, if `verbose`.
        profile: whether to trace some steps into `profile/`, see `usage.traced`.
        verbose: whether to show `notes` and the compiled step.
        on_evaluation: called after each evaluation with the number of updates and the scores, which are saved by then;
            what it raises ends the run.

    Raises:
        UserError: for mistakes in config, data or work folder. Of them, `ResumableError`: the folder is in use, or its
            disk is full.
    """
    started = time.monotonic() if started is None else started
    config = config if isinstance(config, Config) else from_config_dict(config)
    workdir = as_path(workdir)
    if distributed.process_count() > 1:
        agree_on(config, workdir)
    if found := distributed.broadcast(finished(config, workdir) if distributed.is_main() else None):
        if distributed.is_main():
            show("\n".join(found["lines"]))
        return Outcome(found["step"], found["scores"], workdir / "model")
    with stop_on_signals() as stop:
        try:
            with owned(workdir) as owner, _storage_errors(workdir):
                made = setup(config, workdir, started=started, stop=stop, owner=owner)
                outcome = train(made, notes=notes, profile=profile, verbose=verbose, on_evaluation=on_evaluation)
                distributed.barrier()
        except BaseException as error:
            if not stop.explains(error):
                raise
            outcome = _interrupted(stop)
    return outcome


@contextlib.contextmanager
def _storage_errors(workdir: AnyPath) -> Iterator[None]:
    """A context that turns errors of writing to `workdir`, such as that the disk is full, into one sentence."""
    try:
        yield
    except OSError as error:
        is_there = error.filename is not None and str(error.filename).startswith(str(workdir))
        if not is_there and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise ResumableError(
            f"{workdir} can't be written ({error.strerror}); its checkpoints are intact: mend that, or make room, and "
            "rerun the command to resume."
        ) from error


@standard_numerics()
def train(
    run: Run,
    *,
    notes: Sequence[str] = (),
    profile: bool = False,
    verbose: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Outcome:
    """Train from the last checkpoint, or from the start, to the end; arguments as in `run`."""
    training = run.config.training
    damages: list[str] = []
    saved, progress = _restore(run, damages.append)
    step = first_step = 0 if saved is None else int(saved.step)
    is_over = step >= training.num_steps or _out_of_patience(run, progress)
    with (
        _open_log(run, step, verbose) as log,
        run.checkpoints,
        contextlib.closing(Prefetched(iter(()) if is_over else run.batches.iterate(progress.position))) as batches,
        contextlib.closing(run.batches),
        traced(
            run.train_step, run.workdir / "profile" if profile else None, steps=training.num_steps - step
        ) as train_step,
        distributed.exit_if_peer_lost(),
    ):
        _greet(run, log, step, damages, notes)
        state, program = _start(run, saved)
        if step and step % (progress.eval_every or training.eval_every) == 0:
            # The interruption may have come between saving and evaluating.
            _evaluate(run, log, state, step, progress, shows=not is_over, report=on_evaluation)
        rate, unread, position, is_read_back = Rate(), None, progress.position, saved is not None
        while step < training.num_steps and not _out_of_patience(run, progress):
            before, position = position, progress.position
            batch, progress.position = next(batches)
            stats = batch_stats(batch, run.task.flops(batch))
            run.stop.mark_unsaved()
            state, sums = train_step(state, shard_batch(batch, run.mesh), run.stop_flags.for_step(stats))
            step += 1
            if step == first_step + 1:
                jax.block_until_ready(sums)
                log.detail(f"The first step was done after {run.clock.seconds():.1f} s")
                if program is not None:
                    log.program(step, describe(program))
            if unread is not None:  # a step late, so that devices do not wait for their host
                rate.tokens += _read(run, log, unread, step - 1, before, progress)
            unread = stats | sums
            log.advance(step)
            logs, evaluates = step % training.log_every == 0, step % training.eval_every == 0
            ends = step == training.num_steps or run.stop_flags.must_stop()
            saves = is_checkpoint_step(training, step) or ends
            if logs or saves:
                rate.tokens += _read(run, log, unread, step, position, progress)
                unread = None
            if logs:
                _log(run, log, step, progress, rate.take(), norms_of(sums))
            if saves:
                log.flush()
                _save(run, state, step, progress)
                if not is_read_back:  # the first of a run
                    run.checkpoints.read_back(step, state.params)
                    is_read_back = True
                run.stop.mark_saved(step)
            if evaluates:
                with rate.paused():
                    _evaluate(run, log, state, step, progress, shows=not ends, report=on_evaluation)
            if ends:
                break
        run.checkpoints.wait()
        is_over = step >= training.num_steps or _out_of_patience(run, progress)
        return finish(run, log, state, step, progress, is_over=is_over)


def _restore(run: Run, report: Callable[[str], None] = print) -> tuple[TrainState | None, Progress]:
    """The last sound checkpoint, or None and the progress of a new run."""
    restored = run.checkpoints.restore_newest(run.abstract_state, report)
    if restored is None:
        return None, Progress()
    state, metadata = restored
    progress = Progress.from_json(metadata)
    if progress.best_step in run.checkpoints.steps():
        run.checkpoints.protect(progress.best_step)  # the run may have been killed just before it did so
    run.clock.minutes_before = progress.minutes
    run.stop.mark_saved(int(state.step))
    return state, progress


def _save(run: Run, state: TrainState, step: int, progress: Progress) -> None:
    run.owner.check()
    if not all_finite(state):
        raise UserError(
            f"A parameter is not finite after step {step:,}, which is not saved; {_REMEDY}, and train in another "
            "--workdir."
        )
    progress.minutes, progress.eval_every = run.clock.minutes(), run.config.training.eval_every
    run.checkpoints.save(step, state, progress.to_json())


def _start(run: Run, saved: TrainState | None) -> tuple[TrainState, jax.stages.Compiled | None]:
    """The first state, and the compiled step if all batches have one shape; compiling overlaps with initializing."""
    steps = run.config.training.num_steps - (0 if saved is None else int(saved.step))
    blank = run.batches.blank() if steps > 0 else None
    with ThreadPoolExecutor(1) as thread:
        compiling = None if blank is None else thread.submit(_compile_step, run, blank)
        state = first_state(run) if saved is None else saved
        return state, None if compiling is None else compiling.result()


@standard_numerics()  # the settings belong to a thread, and this has its own
def _compile_step(run: Run, blank: Batch) -> jax.stages.Compiled:
    """Compile `run.train_step` for batches of this shape; calls of it find the program in its cache."""
    values = host_values({}, run.mesh)
    return run.train_step.lower(run.abstract_state, shard_batch(blank, run.mesh), values).compile()


def first_state(run: Run) -> TrainState:
    """The state before the first update. Frees the parameters that `run.origin` holds."""
    # A run that has begun may have lost its checkpoints, so that it starts again.
    given = run.origin.params or params_of_origin(run.config, run.origin)
    run.origin = dataclasses.replace(run.origin, params={})
    return run.init_state(given)


def _out_of_patience(run: Run, progress: Progress) -> bool:
    return 0 < run.config.training.patience <= progress.stale


def _open_log(run: Run, first_step: int, verbose: bool) -> RunLog:
    log_type = RunLog if distributed.is_main() else SilentLog
    training = run.config.training
    return log_type(
        run.workdir,
        first_step=first_step,
        num_steps=training.num_steps,
        verbose=verbose,
        trackers=training.trackers,
        config=run.config.to_dict(),
    )


def _greet(run: Run, log: RunLog, step: int, damages: Sequence[str], notes: Sequence[str]) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state.params))
    devices = f"{run.mesh.size} {jax.devices()[0].device_kind} device{'s' if run.mesh.size > 1 else ''}"
    log.say(f"{run.workdir}: {run.config.task}, {'; '.join(run.task.notes)}")
    log.say(f"{count:,} parameters, {run.config.data.tokens_per_batch:,} token slots per side and step, on {devices}")
    for damage in damages:
        log.say(damage)
    for note in notes:
        log.detail(note)
    if step:
        log.say(f"Resuming from step {step:,}")
    elif run.config.init_from:
        log.say(f"Starting from the model in {run.config.init_from}")


def _log(
    run: Run, log: RunLog, step: int, progress: Progress, tokens_per_second: float, norms: dict[str, float]
) -> None:
    if run.batches.skipped:
        log.say_once("skipped", f"Left out {run.batches.skipped:,} examples longer than config.data.max_length so far")
    sums, progress.unlogged = defaultdict(float, progress.unlogged), {}
    steps = sums["steps"] or math.nan  # all steps since the last line may have been skipped
    values = {
        "loss": sums["loss"] / (sums["weight"] or math.nan),
        "lr": float(run.schedule(max(step - progress.skipped - 1, 0))),
        "grad_norm": sums["grad_norm"] / steps,
        "tokens": sums["weight"],
        "fill": sums["fill"] / steps,
        "epoch": progress.position.epoch,
    }
    if "skipped" in sums:
        values["skipped"] = sums["skipped"]
    if tokens_per_second > 0:
        run.clock.expect_evaluation(run.evaluator.num_targets / tokens_per_second)
    timing = {"tokens_per_second": tokens_per_second, "minutes": run.clock.minutes()}
    log.train(step, values | norms, timing | usage(sums, tokens_per_second, run.mesh))


def _read(run: Run, log: RunLog, values: Mapping[str, Any], step: int, position: Position, progress: Progress) -> float:
    """Add what a step returned to `progress`; returns its weight.

    Args:
        run: the run.
        log: its log.
        values: statistics and sums of the step.
        step: number of the step, from 1.
        position: where its batch was taken from.
        progress: progress of the run.

    Raises:
        UserError: if the loss or the gradient is not finite, unless the config says to skip such a step.
    """
    sums = run.stop_flags.read(values)
    if not sums["nonfinite"]:
        return progress.add(sums)
    what = "gradient" if math.isfinite(sums["loss"]) else "loss"
    value = float(sums["grad_norm"] if what == "gradient" else sums["loss"])
    records = run.batches.records_at(position)
    # JSON has neither NaN nor infinity.
    log.nonfinite(step, {"what": what, "value": str(value), "epoch": position.epoch, "records": records})
    shown = ", ".join(map(str, records[:SHOWN_RECORDS])) + (" and others" if len(records) > SHOWN_RECORDS else "")
    batch = f"its batch was of epoch {position.epoch}"
    if records:
        batch += f" and had the records {shown} (counted from 0; log.jsonl has all)"
    weight = progress.add(sums)
    if run.config.training.nonfinite == "stop":
        raise UserError(
            f"The {what} became {value} by step {step:,}; {_REMEDY}, and train in another --workdir, or set "
            f"config.training.nonfinite to 'skip'; {batch}."
        )
    if progress.nonfinite >= MAX_SKIPPED:
        raise UserError(
            f"The {what} became {value} by step {step:,}, as in each of the last {MAX_SKIPPED} steps; {_REMEDY}, and "
            "train in another --workdir."
        )
    log.say(f"Step {step:,} is skipped because its {what} is {value}; {batch}")
    return weight


def _evaluate(
    run: Run,
    log: RunLog,
    state: TrainState,
    step: int,
    progress: Progress,
    *,
    shows: bool,
    report: OnEvaluation | None,
) -> None:
    """Evaluate with a quick search, and protect the checkpoint of `step` if it is the best so far.

    Samples are shown if `shows`, unless the run is out of patience: those of the final evaluation follow then.

    Raises:
        UserError: if the model's outputs are not numbers.
    """
    started = time.monotonic()
    try:
        evaluation = run.evaluator(params_to_evaluate(state), final=False)
    except NotNumbersError as error:
        # Finite parameters may be so large that what the model computes is not.
        raise UserError(
            f"The model's probabilities became NaN by step {step:,}; {_REMEDY}, and train in another --workdir."
        ) from error
    seconds = time.monotonic() - started
    run.clock.measured_evaluation(seconds)
    log.evaluation(step, evaluation.scores, {"seconds": seconds, "minutes": run.clock.minutes()})
    found = rank(run.task, run.config.training.metric, evaluation)
    if not progress.best_step or found > (progress.best_score, progress.best_tie):
        (progress.best_score, progress.best_tie), progress.best_step, progress.stale = found, step, 0
        run.checkpoints.protect(step)
    else:
        progress.stale += 1
    samples = evaluation.samples[: run.config.training.num_samples]
    log.samples(step, samples, shows=shows and not _out_of_patience(run, progress))
    if report is not None:
        report(step, evaluation.scores)


def _interrupted(stop: StopSignal) -> Outcome:
    """The outcome of a run that a signal ended; does not return if the other processes do not know of the signal."""
    outcome = Outcome(stop.saved_step, {}, None, stop.number)
    if distributed.is_main():
        what = f"and saved at step {outcome.step:,}" if outcome.step else "with nothing new to save"
        show(f"Stopped {what}; rerun the command to resume.")
    if distributed.process_count() > 1 and not stop.is_common:
        distributed.exit_all(130 if stop.number == signal.SIGINT else 0, "It was stopped; rerun the command to resume.")
    return outcome
