"""What a run keeps in its folder besides checkpoints and logs: its config and its tokenizer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformer_jax.config import Config
from transformer_jax.errors import UserError
from transformer_jax.files import replace_folder, write_atomically
from transformer_jax.tasks import Task, make_task

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


def prepare_task(config: Config, workdir: Path) -> Task:
    """The task of `config`, with the tokenizer of the run in `workdir` if there is one. Nothing is written yet.

    Raises:
        UserError: if the folder holds a run of another config, or the task's data can't be read.
    """
    if not _has_begun(workdir):
        return make_task(config)
    path = workdir / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        tokenizer_files = {file.name: file.read_bytes() for file in sorted((workdir / "tokenizer").iterdir())}
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); choose another --workdir.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); choose another --workdir.") from error
    if not isinstance(before, dict):
        raise UserError(f"{path} is not the config of a run; choose another --workdir.")
    for name, value, now in _differences(before, dataclasses.asdict(config)):
        if not name.startswith(MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a run with config.{name}={value!r}, not {now!r}; "
                "choose another --workdir, or delete that one."
            )
    return make_task(config, tokenizer_files)


def claim(workdir: Path, config: Config, task: Task) -> None:
    """Make `workdir` the folder of a run: write its config and, unless the run has begun, its tokenizer.

    Raises:
        UserError: if the folder can't be written, or holds something else than a run.
    """
    path = workdir / "config.json"
    try:
        if path.exists() and "training" not in json.loads(path.read_text(encoding="utf-8")):
            raise UserError(f"{workdir} holds a config.json that is not of a run; choose another --workdir.")
        workdir.mkdir(parents=True, exist_ok=True)
        if not _has_begun(workdir):
            replace_folder(workdir / "tokenizer", task.tokenizer_files)
        write_atomically(path, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{workdir} can't be used as --workdir ({error.strerror}); choose another.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); choose another --workdir.") from error


def _has_begun(workdir: Path) -> bool:
    """Whether there is a checkpoint or a model: what a run leaves before that may be written over."""
    return (workdir / "model").exists() or any((workdir / "checkpoints").glob("[0-9]*"))


def _differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(set(before) | set(now))
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{path}.{n}" if path else n)]
    same = before == (list(now) if isinstance(now, tuple) else now)
    return [] if same else [(path, before, now)]
