"""The process of one trial: `python -m transformer_jax.experiments.trial SWEEP NUMBER`."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.experiments.folder import log_file, read_sweep, run_folder
from transformer_jax.experiments.study import Study
from transformer_jax.system import ResumableError, UserError
from transformer_jax.system.ownership import InUseError
from transformer_jax.system.runtime import prepare, show_error

STORAGE_VARIABLE = "TRANSFORMER_JAX_SWEEP_STORAGE"
"""The URL of the study; not an argument, which others can see, as it may hold a password."""
CORES_VARIABLE = "TRANSFORMER_JAX_SWEEP_CORES"
"""Numbers of the CPU cores that the trial may use, such as 0,1; default: all."""
PARENT_VARIABLE = "TRANSFORMER_JAX_SWEEP_PARENT"
"""Process id of the program that started the trial, which saves and ends once that is gone."""
LATER, STOP = 75, 74
"""Exit statuses of a trial that is not over. EX_TEMPFAIL: another program runs it; EX_IOERR: a disk is full or the
study can't be reached, which others would meet too."""
_WATCHED_SECONDS = 2.0


class _Pruned(Exception):
    """The trial is not worth its time."""


def main() -> int:
    """Run the trial that the arguments name; returns 0 if the study knows how it ended."""
    if hasattr(signal, "SIGUSR2"):  # Slurm's warning to all processes of a job, which `launchers.run_command` heeds
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    if cores := os.environ.get(CORES_VARIABLE):
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
    prepare()
    try:
        return run_trial(folder, number, os.environ.get(STORAGE_VARIABLE))
    except ResumableError as error:
        show_error(str(error))
        return LATER if isinstance(error, InUseError) else STOP


def run_trial(folder: Path, number: int, url: str | None) -> int:
    """Run or resume a trial of a sweep, and record in its study how it ended.

    Returns:
        0, or 128 and the number of the signal that interrupted the run, which another call resumes.

    Raises:
        ResumableError: if another program runs it, a disk is full, or the study can't be used.
    """
    with contextlib.closing(Study(folder, read_sweep(folder), url)) as study:
        return _run_trial(study, number)


def _run_trial(study: Study, number: int) -> int:
    from transformer_jax.training import run

    folder, sweep = study.folder, study.sweep
    if study.trials()[number].state.is_finished():
        return 0
    config = sweep.config_of(study.values(number))

    def report(step: int, scores: Mapping[str, Any]) -> None:
        if study.report(number, step, float(scores[sweep.metric])):
            raise _Pruned

    try:
        outcome = run(config, run_folder(folder, number), on_evaluation=report)
    except _Pruned:
        study.finish(number, pruned=True)
    except ResumableError:
        raise
    except UserError as error:
        show_error(str(error))
        study.finish(number, error=str(error))
    except Exception as error:
        where = log_file(folder, number)
        study.finish(number, error=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}; see {where}.")
        raise
    else:
        if outcome.signal is not None:
            return 128 + outcome.signal
        study.finish(number, float(outcome.scores[sweep.metric]), minutes=outcome.scores.get("minutes"))
    return 0


def end_with(parent: int, end: Callable[[], None]) -> None:
    """Call `end`, in a thread, once `parent` is no longer the parent of this process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCHED_SECONDS)
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    if parent := os.environ.get(PARENT_VARIABLE):  # left alone, it would hold its devices unseen
        end_with(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
    sys.exit(main())
