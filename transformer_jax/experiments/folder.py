"""The folder of a sweep: `sweep.json`, which says what is tried, and the places of the rest."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from transformer_jax.experiments.compare import flat_configs
from transformer_jax.experiments.space import Point, from_json, is_drawn, to_json, with_values
from transformer_jax.system import UserError
from transformer_jax.system.files import is_at, read_json, try_lock, write_atomically

SWEEP_FILE = "sweep.json"
STUDY_FILE = "study.journal"
LOCK_FILE = "sweep.lock"
TRIALS = "trials"
FORMAT_VERSION = 1


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

    @property
    def fields(self) -> list[str]:
        """The fields that it varies."""
        return list(dict.fromkeys(field for point in self.points for field in point))

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
        found = {path.name for path in folder.iterdir() if not path.name.startswith(f".{SWEEP_FILE}.")}
        if SWEEP_FILE not in found and (others := found - {LOCK_FILE}):
            raise UserError(f"{folder} holds other files ({min(others)}); choose another --workdir.")
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
        raise UserError(f"{folder} holds a sweep with other {fields[0]}; choose another --workdir, or delete that one.")
    return there


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """A context in which no other program on disks with locks counts or adds trials."""
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if try_lock(descriptor) and is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)
        time.sleep(0.05)


def run_folder(folder: Path, number: int) -> Path:
    """The run of a trial."""
    return folder / TRIALS / f"{number:03d}"


def log_file(folder: Path, number: int) -> Path:
    """What the process of a trial printed."""
    return folder / TRIALS / f"{number:03d}.log"
