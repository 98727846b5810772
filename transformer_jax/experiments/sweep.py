"""Running a sweep: which trial comes next, what became of those that run, and a live table of them."""

import contextlib
import datetime
import math
import secrets
import signal
import sys
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformer_jax.experiments.folder import log_file, run_folder
from transformer_jax.experiments.launchers import Job, Launcher
from transformer_jax.experiments.study import Study
from transformer_jax.experiments.trial import LATER, STOP
from transformer_jax.system import ResumableError, ownership
from transformer_jax.system.runtime import Shown, reason_of, show

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PROGRAMS = "programs"
MOST_DEATHS = 3
"""A trial whose process ends so often without a result, and without an evaluation in between, has failed."""
POLL_SECONDS = 1.0
_ROWS = 24
_RANKS = ("finished", "pruned", "running", "failed")
_STATES = {"RUNNING": "running", "COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


def run_sweep(study: Study, launcher: Launcher, trials: int) -> None:
    """Make `trials` trials, finish those that were interrupted, and return when all are over.

    Several programs, on several machines that share the folder, may do so at a time. Each owns a folder in `programs/`,
    which shows the others whether it is alive.

    Raises:
        ResumableError: if the study can't be used, or a disk is full; what runs is stopped, and resumes the next time.
    """
    jobs: dict[int, Job] = {}
    with _program(study.folder) as program, _display() as display, _stopped_at_exit(jobs):
        watch = _Watch(study, program)
        while True:
            for number, status in [(number, job.status()) for number, job in jobs.items()]:
                if status is not None:
                    del jobs[number]
                    _settle(study, number, status)
            for trial in watch.abandoned(jobs):
                if len(jobs) < launcher.capacity and study.adopt(trial.number, program):
                    found = launcher.find(trial.user_attrs.get("job"))
                    jobs[trial.number] = found or _start(study, launcher, trial.number)
            while len(jobs) < launcher.capacity and (new := study.ask(trials, program)) is not None:
                jobs[new] = _start(study, launcher, new)
            made = study.trials()
            display.update(study, made, trials)
            if not jobs and len(made) >= trials and all(trial.state.is_finished() for trial in made):
                return
            time.sleep(POLL_SECONDS)


def _start(study: Study, launcher: Launcher, number: int) -> Job:
    try:
        job = launcher.start(number)
    except (OSError, RuntimeError) as error:
        raise ResumableError(
            f"Trial {number} of {study.folder} can't be started ({reason_of(error)}); mend that and rerun the command."
        ) from error
    if job.name:
        study.note_job(number, job.name)
    return job


def _settle(study: Study, number: int, status: int) -> None:
    """Do what follows from the end of a trial's process, if its trial is not over."""
    if study.trials()[number].state.is_finished() or status in (LATER, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        return
    log = log_file(study.folder, number)
    if status == STOP:
        raise ResumableError(f"Trial {number} is stopped: {_last_line(log)}")
    if study.note_death(number) >= MOST_DEATHS:
        ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        study.finish(number, error=f"Its process ended {ended}, {MOST_DEATHS} times without progress; see {log}.")


def _last_line(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return f"see {log}."


@contextlib.contextmanager
def _program(folder: Path) -> Iterator[str]:
    """A context in which this program is known to others, by the name that it yields."""
    name = secrets.token_hex(8)
    owner = ownership.Ownership(folder / PROGRAMS / name)
    try:
        owner.acquire()
    except OSError as error:
        raise ResumableError(
            f"{folder} can't be written ({error.strerror}); make room and rerun the command."
        ) from error
    try:
        yield name
    finally:
        owner.release()


class _Watch:
    """Which running trials nobody runs any more."""

    def __init__(self, study: Study, program: str) -> None:
        self._study, self._program = study, program
        self._seen: dict[Path, tuple[Any, float]] = {}

    def abandoned(self, own: Container[int]) -> list["FrozenTrial"]:
        """The trials that run nowhere; `own`: those that this program runs."""
        running = [trial for trial in self._study.trials() if not trial.state.is_finished() and trial.number not in own]
        return [trial for trial in running if not self._runs(trial)]

    def _runs(self, trial: "FrozenTrial") -> bool:
        """Whether its process, or another program that may be starting one, is alive."""
        folder, program = self._study.folder, trial.user_attrs["program"]
        is_known = program != self._program and self._is_owned(folder / PROGRAMS / program)
        return is_known or self._is_owned(run_folder(folder, trial.number))

    def _is_owned(self, folder: Path) -> bool:
        owner = None
        with contextlib.suppress(OSError):
            owner = ownership.owner_of(folder)
        alive = False if owner is None else ownership.is_alive(owner)
        if alive is not None:
            return alive
        # Of another machine: alive as long as its signs of life change.
        before, since = self._seen.get(folder, (None, 0.0))
        if before != owner:
            self._seen[folder] = owner, time.monotonic()
            return True
        return time.monotonic() < since + ownership.DEAD_SECONDS


@contextlib.contextmanager
def _stopped_at_exit(jobs: dict[int, Job]) -> Iterator[None]:
    """A context that stops the jobs if it is left early; they save, and go on the next time."""
    try:
        yield
    except BaseException as error:
        for job in jobs.values():
            job.stop()
        for job in jobs.values():
            job.wait()
        if isinstance(error, KeyboardInterrupt):
            error.add_note("Rerun the command to go on.")
        raise


def state_of(trial: "FrozenTrial") -> str:
    """running, finished, pruned or failed."""
    return _STATES[trial.state.name]


def score_of(trial: "FrozenTrial", minimize: bool) -> float | None:
    """The value of a trial or, where it has none, the best so far."""
    if trial.state.name == "COMPLETE":
        return trial.value
    values = [value for value in trial.intermediate_values.values() if math.isfinite(value)]
    return (min if minimize else max)(values) if values else None


def ranked(trials: Sequence["FrozenTrial"], minimize: bool) -> list["FrozenTrial"]:
    """Trials by rank: the finished ones by value, then those that were pruned, run and failed."""

    def key(trial: "FrozenTrial") -> tuple[int, float]:
        score = score_of(trial, minimize)
        return _RANKS.index(state_of(trial)), math.inf if score is None else score if minimize else -score

    return sorted(trials, key=key)


def field_names(fields: Sequence[str]) -> list[str]:
    """Fields by the ends of their paths, such as lr for optim.lr, where these differ."""
    ends = [field.rpartition(".")[2] for field in fields]
    return [end if ends.count(end) == 1 else field for field, end in zip(fields, ends, strict=True)]


def shown_value(value: Any) -> str:
    """A value of a field, in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def minutes_of(trial: "FrozenTrial") -> float:
    """Minutes that its run took; of a trial without a result, since it began, interruptions included."""
    if "minutes" in trial.user_attrs:
        return float(trial.user_attrs["minutes"])
    if trial.datetime_start is None:
        return 0.0
    end = trial.datetime_complete or datetime.datetime.now(trial.datetime_start.tzinfo)
    return (end - trial.datetime_start).total_seconds() / 60


class _Display:
    """Shows a line for each change of a trial's state."""

    def __init__(self) -> None:
        self._states: dict[int, str] = {}

    def update(self, study: Study, made: Sequence["FrozenTrial"], trials: int) -> None:
        """Show what has changed."""
        fields = list(dict.fromkeys(field for trial in made for field in trial.params))
        names = dict(zip(fields, field_names(fields), strict=True))
        for trial in made:
            state = state_of(trial)
            if self._states.get(trial.number) == state:
                continue
            self._states[trial.number] = state
            values = ", ".join(f"{names[field]}={shown_value(value)}" for field, value in trial.params.items())
            score = score_of(trial, study.sweep.minimize)
            said = f", {study.sweep.metric} {score:.4g}" if score is not None else ""
            error = f": {trial.user_attrs.get('error')}" if state == "failed" else ""
            show(f"Trial {trial.number} of {trials} ({values}) {state}{said}{error}")


class _Table(_Display):
    """Shows a table, which changes in place."""

    def __init__(self, live: Any) -> None:
        super().__init__()
        self._live = live

    def update(self, study: Study, made: Sequence["FrozenTrial"], trials: int) -> None:
        """Show the trials as they are now."""
        self._live.update(table_of(study, made, trials, rows=_ROWS), refresh=True)


def table_of(study: Study, made: Sequence["FrozenTrial"], trials: int, rows: int | None = None) -> Any:
    """A table of the trials by rank, as `rich` shows it; of more than `rows`, the last ones are left out."""
    from rich.table import Table

    sweep = study.sweep
    fields = sweep.fields
    over = sum(trial.state.is_finished() for trial in made)
    table = Table(box=None, title=f"{over} of {trials} trials are over", title_justify="left")
    table.add_column("trial", justify="right")
    for name in field_names(fields):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("state", "step", sweep.metric.replace("_", " "), "minutes"):
        table.add_column(name, justify="left" if name == "state" else "right")
    best = ranked(made, sweep.minimize)
    for trial in best[:rows]:
        score = score_of(trial, sweep.minimize)
        table.add_row(
            str(trial.number),
            *(shown_value(trial.params[field]) if field in trial.params else "" for field in fields),
            state_of(trial),
            "" if trial.last_step is None else f"{trial.last_step:,}",
            "" if score is None else f"{score:.4g}",
            f"{minutes_of(trial):.1f}",
        )
    if rows is not None and len(best) > rows:
        table.caption = f"and {len(best) - rows} more"
    return table


@contextlib.contextmanager
def _display() -> Iterator[_Display]:
    if not Shown(sys.stdout).isatty():
        yield _Display()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=cast(Any, Shown(sys.stdout))), auto_refresh=False, transient=True) as live:
        yield _Table(live)
