"""Running a sweep: which trial comes next, what became of those that run, and a live table of them."""

import contextlib
import datetime
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from transformer_jax.experiments.launchers import Job, Launcher
from transformer_jax.experiments.study import Study, log_file, run_folder
from transformer_jax.experiments.trial import LATER
from transformer_jax.system import ownership
from transformer_jax.system.runtime import Shown, show

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MOST_DEATHS = 3
"""A trial whose process ends so often without a result has failed."""
POLL_SECONDS = 1.0
_ROWS = 24
_RANKS = ("finished", "pruned", "running", "failed")
_STATES = {"RUNNING": "running", "COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


def run_sweep(study: Study, launcher: Launcher, trials: int) -> None:
    """Make `trials` trials, finish those that were interrupted, and return when all are over.

    Several programs, on several machines that share the folder, may do so at a time.

    Raises:
        StorageError: if the study can't be used; what runs is stopped, and goes on the next time.
    """
    jobs: dict[int, Job] = {}
    me = ownership.identity()
    watch = _Watch(study, me)
    with _display() as display, _stopped_at_exit(jobs):
        while True:
            for number, status in [(number, job.status()) for number, job in jobs.items()]:
                if status is not None:
                    del jobs[number]
                    _settle(study, number, status)
            made = study.trials()
            for number in watch.abandoned(made, jobs):
                if len(jobs) < launcher.capacity:
                    study.adopt(number, me)
                    jobs[number] = launcher.start(number)
            while len(jobs) < launcher.capacity and (new := study.ask(trials, me)) is not None:
                jobs[new] = launcher.start(new)
            made = study.trials()
            display.update(study, made, trials)
            if not jobs and len(made) >= trials and not any(trial.state.name == "RUNNING" for trial in made):
                return
            time.sleep(POLL_SECONDS)


def _settle(study: Study, number: int, status: int) -> None:
    """Note that the process of a trial has ended."""
    if study.trials()[number].state.name != "RUNNING" or status == LATER:
        return
    trial = study.trials()[number]
    is_interrupted = status in (128 + signal.SIGTERM, 128 + signal.SIGINT)  # after it has saved
    if is_interrupted or trial.user_attrs.get("deaths", 0) + 1 < MOST_DEATHS:
        study.adopt(number, {}, deaths=0 if is_interrupted else 1)
        return
    ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    study.finish(number, error=f"Its process ended {ended}, {MOST_DEATHS} times; see {log_file(study.folder, number)}.")


class _Watch:
    """Which running trials nobody runs any more."""

    def __init__(self, study: Study, me: dict[str, Any]) -> None:
        self._study, self._me = study, me
        self._seen: dict[int, tuple[Any, float]] = {}

    def abandoned(self, made: Sequence["FrozenTrial"], own: Any) -> list[int]:
        """Numbers of the trials that run nowhere; `own`: those that this program runs."""
        running = [trial for trial in made if trial.state.name == "RUNNING" and trial.number not in own]
        return [trial.number for trial in running if not self._is_alive(trial)]

    def _is_alive(self, trial: "FrozenTrial") -> bool:
        asker = trial.user_attrs.get("asker") or {}
        owner = None
        with contextlib.suppress(OSError):
            owner = ownership.owner_of(run_folder(self._study.folder, trial.number))
        # This program lives, but has lost its job.
        known = [ownership.is_alive(each) for each in (asker, owner) if each and each != self._me]
        if True in known:
            return True
        if None not in known:
            return False
        # Of another machine: alive as long as its signs of life change.
        before, since = self._seen.get(trial.number, (None, 0.0))
        if before != (asker, owner):
            self._seen[trial.number] = (asker, owner), time.monotonic()
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
    values = trial.intermediate_values.values()
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
    """Minutes since the trial began, or until it ended."""
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
    fields = list(dict.fromkeys(field for point in sweep.points for field in point))
    over = sum(trial.state.name != "RUNNING" for trial in made)
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
