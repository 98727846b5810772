"""What a run keeps in its folder besides checkpoints and logs: its config, its tokenizer, what it started from."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from transformer_jax.config import Config, upgraded
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, os_errors, replace_folder, write_atomically
from transformer_jax.tasks.base import Task
from transformer_jax.training.origin import Origin, read_origin, stored_origin

ORIGIN_FILE = "init_from.json"

MAY_CHANGE = (
    "training.num_samples",
    "training.max_minutes",
    "training.keep_checkpoints",
    "data.manual_dir",
    "data.data_dir",
    "decoding.",
    "mesh.",
)
"""Fields, or groups of them, that may differ when a run is gone on with: they do not change what is learned."""


def find_origin(config: Config, workdir: AnyPath) -> Origin:
    """What the run in `workdir` starts from or, if it has begun, started from. Nothing is written yet.

    A run that has begun does not read `config.init_from` again.

    Raises:
        UserError: if the folder holds a run of another config, or `config.init_from` names no model for it.
    """
    if not has_begun(workdir):
        return read_origin(config)
    before = upgraded(_read_json(workdir / "config.json"))
    if not isinstance(before, dict):
        raise UserError(f"{workdir / 'config.json'} is not the config of a run; choose another --workdir.")
    default = Config(task=config.task).to_dict()
    for name, value, now in _differences(before, config.to_dict(), default):
        if not name.startswith(MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a run with config.{name}={value!r}, not {now!r}; "
                "choose another --workdir, or delete that one."
            )
    try:
        with os_errors(workdir):
            tokenizer_files = {file.name: file.read_bytes() for file in sorted((workdir / "tokenizer").iterdir())}
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); choose another --workdir.") from error
    if not config.init_from:
        return Origin(config.model, tokenizer_files=tokenizer_files)
    path = workdir / ORIGIN_FILE
    return stored_origin(config, _read_json(path), tokenizer_files, str(path))


def claim(workdir: AnyPath, config: Config, task: Task, origin: Origin) -> None:
    """Make `workdir` the folder of a run: write its config and, unless it has begun, its tokenizer and its origin.

    Raises:
        UserError: if the folder can't be written, or holds something else than a run.
    """
    path = workdir / "config.json"
    with _usable(workdir):
        if path.exists() and "training" not in _read_json(path):
            raise UserError(f"{workdir} holds a config.json that is not of a run; choose another --workdir.")
        workdir.mkdir(parents=True, exist_ok=True)
        if not has_begun(workdir):
            replace_folder(workdir / "tokenizer", task.tokenizer_files)
            (workdir / ORIGIN_FILE).unlink(missing_ok=True)
            if config.init_from:
                write_atomically(workdir / ORIGIN_FILE, (json.dumps(origin.to_json(), indent=2) + "\n").encode())
        write_atomically(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def has_begun(workdir: AnyPath) -> bool:
    """Whether there is a checkpoint or a model: what a run leaves before that may be written over.

    Raises:
        UserError: if the folder can't be read.
    """
    with _usable(workdir):
        return (workdir / "model").exists() or any((workdir / "checkpoints").glob("[0-9]*"))


@contextlib.contextmanager
def _usable(workdir: AnyPath) -> Iterator[None]:
    """Within, an `OSError` is a `UserError` that asks for another folder."""
    try:
        with os_errors(workdir):
            yield
    except OSError as error:
        raise UserError(f"{workdir} can't be used as --workdir ({error.strerror}); choose another.") from error


def _read_json(path: AnyPath) -> Any:
    try:
        with os_errors(path):
            content = path.read_bytes()
        return json.loads(content.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); choose another --workdir.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); choose another --workdir.") from error


def _differences(before: Any, now: Any, default: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Name, value and value of each field that differs; one that an older release did not have has its default."""
    if isinstance(before, dict) and isinstance(now, dict):
        before = {**{name: default[name] for name in now if name in default}, **before}
        return [
            difference
            for name in sorted(set(before) | set(now))
            for difference in _differences(
                before.get(name), now.get(name), default.get(name), f"{path}.{name}" if path else name
            )
        ]
    before_json, now_json = (list(value) if isinstance(value, tuple) else value for value in (before, now))
    return [] if before_json == now_json else [(path, before, now)]
