"""The trials of a sweep, in Optuna's storages.

Optuna keeps the trials and draws their values. The owner of its run folder shows whether a trial's process is alive, on
whatever machine; if not, it resumes from its checkpoint. Optuna's heartbeat needs a database, and gives up a trial
whose process is gone.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_jax.experiments.folder import STUDY_FILE, Sweep, lock
from transformer_jax.experiments.space import Choices, Range
from transformer_jax.system import ResumableError, UserError
from transformer_jax.system.runtime import reason_of

if TYPE_CHECKING:
    import optuna

PATIENCE = 4
"""Trials that are complete before the median may prune others."""


class StorageError(ResumableError):
    """The study cannot be read or written."""


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """A context that turns what Optuna's storages raise into one sentence."""
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except UpdateFinishedTrialError:
        raise
    except (OSError, StorageInternalError, SQLAlchemyError, ImportError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(
            f"{place} can't be used ({reason_of(error)}); mend that and rerun the command to go on."
        ) from error


def without_password(url: str | None) -> str:
    """The URL of a database as it may be shown and kept; empty for None.

    Raises:
        UserError: if it is none.
    """
    if url is None:
        return ""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise UserError("--storage is no URL of a database, such as postgresql+psycopg://USER@HOST/NAME.") from error


class Study:
    """The trials of a sweep, which several programs on several machines may share.

    All methods raise `StorageError` if the storage can't be used.
    """

    def __init__(self, folder: Path, sweep: Sweep, url: str | None = None) -> None:
        """Open the study of a sweep, made if there is none.

        Args:
            folder: that of the sweep.
            sweep: what it tries.
            url: a database; default: a journal file in the folder.

        Raises:
            UserError: if Optuna is not installed, or the study is in another storage.
            StorageError: if the storage can't be used.
        """
        try:
            import optuna
        except ImportError as error:
            raise UserError("Sweeps need Optuna; run pip install 'transformer-jax[sweep]'.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.folder, self.sweep, self.url = folder, sweep, url
        shown = without_password(url)
        if shown != sweep.storage:
            remedy = f"give --storage {sweep.storage}" if sweep.storage else "drop --storage"
            raise UserError(f"The study of {folder} is in {sweep.storage or folder / STUDY_FILE}; {remedy}.")
        self._place = shown or str(folder / STUDY_FILE)
        with self._errors():
            self._storage: Any
            if url is None:
                self._storage = optuna.storages.JournalStorage(_journal(folder / STUDY_FILE))
            else:
                self._storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
            self.optuna = optuna.create_study(
                storage=self._storage,
                study_name=sweep.name,
                pruner=_pruner(sweep),
                direction="minimize" if sweep.minimize else "maximize",
                load_if_exists=True,
            )

    def close(self) -> None:
        """Close the connections to a database."""
        if self.url is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()

    def trials(self) -> "list[optuna.trial.FrozenTrial]":
        """All trials by number."""
        with self._errors():
            return self.optuna.get_trials(deepcopy=False)

    def ask(self, trials: int, program: str) -> int | None:
        """The number of a new trial, or None if there are `trials` of them.

        Args:
            trials: how many there are to be.
            program: the one that runs it, see `sweep.run_sweep`.
        """
        import optuna

        with self._errors(), lock(self.folder):
            number = len(self.optuna.get_trials(deepcopy=False))
            if number >= trials:
                return None
            point = self.sweep.points[number % len(self.sweep.points)]
            fixed = {field: value for field, value in point.items() if not isinstance(value, Range | Choices)}
            # At once, so that a kill leaves no half of it; `Study.enqueue_trial` keeps values that are given as here.
            state = optuna.trial.TrialState.RUNNING
            attributes: Any = {"user_attrs": {"program": program}, "system_attrs": {"fixed_params": fixed}}
            self.optuna.add_trial(optuna.trial.create_trial(state=state, **attributes))
        self.values(number)
        return number

    def adopt(self, number: int, program: str) -> bool:
        """Run a trial on whose process is gone; returns whether it is not over."""
        if not self._set(number, program=program):
            return False
        self.values(number)
        return True

    def note_death(self, number: int) -> int:
        """Note that the process of a trial ended without a result; returns how often since its last evaluation."""
        trial = self.trials()[number]
        step, deaths = trial.user_attrs.get("deaths", (None, 0))
        deaths = deaths + 1 if step == trial.last_step else 1
        self._set(number, deaths=(trial.last_step, deaths))
        return deaths

    def note_job(self, number: int, job: str) -> None:
        """Note the name under which a cluster knows the process of a trial."""
        self._set(number, job=job)

    def _set(self, number: int, **values: Any) -> bool:
        """Set attributes of a trial; returns False if it is over."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            with self._errors():
                trial = self._trial(number)
                for name, value in values.items():
                    trial.set_user_attr(name, value)
        except UpdateFinishedTrialError:
            return False
        return True

    def values(self, number: int) -> dict[str, Any]:
        """The values of a trial; those that it does not have yet are drawn."""
        with self._errors():
            trial = self._trial(number, _sampler(self.sweep, number))
            for index, (field, value) in enumerate(self.sweep.points[number % len(self.sweep.points)].items()):
                if self.sweep.sampler == "random":  # whatever has been drawn before
                    self.optuna.sampler = _sampler(self.sweep, number, index)
                if isinstance(value, Range) and value.whole:
                    trial.suggest_int(field, int(value.low), int(value.high), log=value.log)
                elif isinstance(value, Range):
                    trial.suggest_float(field, value.low, value.high, log=value.log)
                else:
                    choices = value.values if isinstance(value, Choices) else _listed(self.sweep, field)
                    trial.suggest_categorical(field, choices)
            return dict(trial.params)

    def report(self, number: int, step: int, value: float) -> bool:
        """Record the score of an evaluation; returns whether to end the trial. A repeated one is recorded once."""
        with self._errors():
            now = self.optuna.get_trials(deepcopy=False)[number]
            if now.state.is_finished():  # another program was faster
                return True
            trial = self._trial(number)
            if step not in now.intermediate_values:
                trial.report(value, step)
            return bool(trial.should_prune())

    def finish(
        self,
        number: int,
        value: float | None = None,
        *,
        error: str = "",
        pruned: bool = False,
        minutes: float | None = None,
    ) -> None:
        """Tell how a trial ended: with a value, pruned, or with the sentence of an error. Only the first counts.

        Args:
            number: of the trial.
            value: its score.
            error: why it has none.
            pruned: whether it was pruned.
            minutes: how long its run took.
        """
        if value is not None and not math.isfinite(value):
            value, error = None, f"config.training.metric: {self.sweep.metric} is {value}."
        state = "PRUNED" if pruned else "FAIL" if value is None else "COMPLETE"
        told = ({"error": error} if state == "FAIL" else {}) | ({} if minutes is None else {"minutes": minutes})
        if not self._set(number, **told):
            return
        with self._errors():
            states = type(self.optuna.get_trials(deepcopy=False)[number].state)
            self.optuna.tell(number, value, state=states[state], skip_if_finished=True)

    def _trial(self, number: int, sampler: Any = None) -> "optuna.trial.Trial":
        import optuna

        self.optuna.sampler = sampler or optuna.samplers.RandomSampler()
        study_id = self._storage.get_study_id_from_name(self.sweep.name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return optuna.trial.Trial(self.optuna, trial_id)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self._place)


def _journal(path: Path) -> Any:
    """The journal file. A last line that a full disk or a killed program has cut goes before the next is written."""
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class Lock(JournalFileSymlinkLock):
        def acquire(self) -> bool:
            is_acquired = super().acquire()
            with path.open("r+b") as file:
                content = file.read()
                if not content.endswith(b"\n"):
                    file.truncate(content.rfind(b"\n") + 1)
            return is_acquired

    path = path.absolute()  # the lock is a link to the file, which a relative name would not reach
    return JournalFileBackend(str(path), Lock(str(path)))


def _sampler(sweep: Sweep, number: int, index: int = 0) -> Any:
    """The sampler for a field of a trial, so seeded that no two trials draw the same."""
    import numpy as np
    import optuna

    seed = int(np.random.SeedSequence([sweep.seed, number, index]).generate_state(1)[0])
    independent = optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "random":
        return independent
    if sweep.sampler == "qmc":  # keeps in the study how far its one sequence has come
        return optuna.samplers.QMCSampler(
            seed=sweep.seed, scramble=True, independent_sampler=independent, warn_independent_sampling=False
        )
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=True, group=True)


def _pruner(sweep: Sweep) -> Any:
    import optuna

    training = sweep.config["training"]
    if sweep.prune == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=PATIENCE)
    if sweep.prune == "hyperband":
        least, most = training["eval_every"], training["num_steps"]
        return optuna.pruners.HyperbandPruner(min_resource=min(least, most), max_resource=most)
    return optuna.pruners.NopPruner()


def _listed(sweep: Sweep, field: str) -> list[Any]:
    """All values that a field has among the points, in order."""
    return list(dict.fromkeys(point[field] for point in sweep.points if field in point))
