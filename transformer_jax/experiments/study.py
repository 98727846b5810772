"""A sweep as a folder: `sweep.json`, an Optuna study, and a run for each trial.

Optuna keeps the trials and draws their values; whether a trial's process is alive is told by the owner of its run
folder, on whatever machine, so that it goes on from its checkpoint (Optuna's heartbeat needs a database, and gives up
a trial whose process is gone).
"""

import contextlib
import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from transformer_jax.experiments.compare import flat_configs
from transformer_jax.experiments.space import Choices, Point, Range, from_json, is_drawn, to_json, with_values
from transformer_jax.system import UserError
from transformer_jax.system.files import is_at, read_json, try_lock, write_atomically
from transformer_jax.system.runtime import reason_of

if TYPE_CHECKING:
    import optuna

SWEEP_FILE = "sweep.json"
STUDY_FILE = "study.journal"
TRIALS = "trials"
SAMPLERS = ("random", "tpe", "qmc")
PRUNERS = ("none", "median", "hyperband")
FORMAT_VERSION = 1
PATIENCE = 4
"""Trials that are complete before the median may prune others."""


class StorageError(UserError):
    """The study cannot be read or written."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep tries, as `sweep.json` keeps it."""

    config: dict[str, Any]
    """All fields of the config that its trials vary."""
    points: list[Point]
    metric: str
    """A score on validation data."""
    minimize: bool
    sampler: str = "tpe"
    prune: str = "none"
    seed: int = 0
    name: str = "sweep"
    """Name of the study in its storage."""
    storage: str = ""
    """URL of the database that has the study, without its password; empty: the journal in the folder."""

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content = {"format_version": FORMAT_VERSION, **fields, "points": to_json(self.points)}
        return dict(json.loads(json.dumps(content)))  # tuples as lists, as a file has them

    def default_trials(self, given: int | None, folder: Path) -> int:
        """How many trials there are to be.

        Raises:
            UserError: if that is not said where values are drawn, or more than the grid has.
        """
        if is_drawn(self.points):
            if given is None:
                raise UserError("get_hyper draws values from ranges; say how many trials to make: --trials N.")
            return given
        if given is not None and given > len(self.points):
            raise UserError(f"--trials is {given}, but the grid of {folder} has {len(self.points):,} points.")
        return len(self.points) if given is None else given

    def config_of(self, values: dict[str, Any]) -> ConfigDict:
        """The config of a trial with these values."""
        return with_values(ConfigDict(self.config), values)


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    path = folder / SWEEP_FILE
    try:
        values = dict(read_json(path))
        version = values.pop("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{path} has format_version {version}, but this release reads {FORMAT_VERSION}.")
        return Sweep(**values | {"points": from_json(values["points"])})
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no sweep; name the --workdir of one.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); choose another --workdir.") from error


def claim_sweep(folder: Path, sweep: Sweep) -> Sweep:
    """Keep the sweep in a folder; returns the one that is there, which is the same but for its name.

    Raises:
        UserError: if the folder holds another sweep, or something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SWEEP_FILE).exists():
            others = sorted(path.name for path in folder.iterdir())
            if others and others != ["sweep.lock"]:
                raise UserError(f"{folder} holds other files ({others[0]}); choose another --workdir.")
            with lock(folder):
                if not (folder / SWEEP_FILE).exists():
                    write_atomically(folder / SWEEP_FILE, (json.dumps(sweep.to_json(), indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); choose another --workdir.") from error
    there = read_sweep(folder)
    before, now = there.to_json(), sweep.to_json()
    one, other = flat_configs([before.pop("config"), now.pop("config")])
    fields = [f"config.{name}" for name in {**one, **other} if one.get(name) != other.get(name)]
    fields += [name for name in ("points", "metric", "sampler", "prune", "seed") if before[name] != now[name]]
    if fields:
        raise UserError(f"{folder} holds a sweep of another {fields[0]}; choose another --workdir, or delete that one.")
    return there


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """A context in which no other program on disks with locks counts or adds trials."""
    path = folder / "sweep.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if try_lock(descriptor) and is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)
        time.sleep(0.05)


@contextlib.contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """A context that turns what Optuna's storages raise into one sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OSError, StorageInternalError, SQLAlchemyError, ModuleNotFoundError, json.JSONDecodeError) as error:
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
        """All trials by number, but those that nobody has begun."""
        with self._errors():
            found = self.optuna.get_trials(deepcopy=False)
        return [trial for trial in found if trial.state.name != "WAITING"]

    def ask(self, trials: int, asker: dict[str, Any]) -> int | None:
        """The number of a new trial, or None if there are `trials` of them.

        Args:
            trials: how many there are to be.
            asker: the program that runs it, see `ownership.identity`.
        """
        with self._errors(), lock(self.folder):
            made = self.optuna.get_trials(deepcopy=False)
            is_waiting = any(trial.state.name == "WAITING" for trial in made)  # its asker was killed in the next lines
            number = len(made) - is_waiting
            if number >= trials:
                return None
            if not is_waiting:
                point = self.sweep.points[number % len(self.sweep.points)]
                fixed = {field: value for field, value in point.items() if not isinstance(value, Range | Choices)}
                self.optuna.enqueue_trial(fixed)
            self.optuna.sampler = _sampler(self.sweep, number)
            trial = self.optuna.ask()
            trial.set_user_attr("asker", asker)
        self.values(trial.number)
        return trial.number

    def adopt(self, number: int, asker: dict[str, Any], deaths: int = 0) -> None:
        """Run a trial on whose process is gone; its values are drawn if that had not been done."""
        with self._errors():
            trial = self._trial(number)
            trial.set_user_attr("asker", asker)
            trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) + deaths)
        self.values(number)

    def values(self, number: int) -> dict[str, Any]:
        """The values of a trial; those that it does not have yet are drawn."""
        with self._errors():
            trial = self._trial(number, _sampler(self.sweep, number))
            for field, value in self.sweep.points[number % len(self.sweep.points)].items():
                if isinstance(value, Range) and value.whole:
                    trial.suggest_int(field, int(value.low), int(value.high), log=value.log)
                elif isinstance(value, Range):
                    trial.suggest_float(field, value.low, value.high, log=value.log)
                else:
                    choices = value.values if isinstance(value, Choices) else _listed(self.sweep, field)
                    trial.suggest_categorical(field, choices)
            return dict(trial.params)

    def report(self, number: int, step: int, value: float) -> bool:
        """Tell the score of an evaluation; returns whether to prune the trial. A repeated one is not told again."""
        with self._errors():
            trial = self._trial(number)
            if step not in self.optuna.get_trials(deepcopy=False)[number].intermediate_values:
                trial.report(value, step)
            return bool(trial.should_prune())

    def finish(self, number: int, value: float | None = None, *, error: str = "", pruned: bool = False) -> None:
        """Tell how a trial ended: with a value, pruned, or with the sentence of an error. Only the first counts."""
        if value is not None and not math.isfinite(value):
            value, error = None, f"config.training.metric: {self.sweep.metric} is {value}."
        state = "PRUNED" if pruned else "FAIL" if value is None else "COMPLETE"
        from optuna.exceptions import UpdateFinishedTrialError

        with self._errors(), contextlib.suppress(UpdateFinishedTrialError):
            if state == "FAIL":
                self._trial(number).set_user_attr("error", error)
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


def run_folder(folder: Path, number: int) -> Path:
    """The run of a trial."""
    return folder / TRIALS / f"{number:03d}"


def log_file(folder: Path, number: int) -> Path:
    """What the process of a trial printed."""
    return folder / TRIALS / f"{number:03d}.log"


def _journal(path: Path) -> Any:
    """The journal file, without a last line that a full disk or a killed program has cut: it would spoil the next."""
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    writing = JournalFileSymlinkLock(str(path))
    backend = JournalFileBackend(str(path), writing)
    writing.acquire()
    try:
        with path.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        writing.release()
    return backend


def _sampler(sweep: Sweep, number: int) -> Any:
    """The sampler for a trial, so seeded that an interruption changes no draw and no two trials draw the same."""
    import numpy as np
    import optuna

    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    if sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sweep.sampler == "qmc":  # keeps in the study how far its one sequence has come
        return optuna.samplers.QMCSampler(seed=sweep.seed, scramble=True, warn_independent_sampling=False)
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
