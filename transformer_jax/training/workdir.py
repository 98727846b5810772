"""What a run keeps in its folder besides checkpoints and logs: its config and its tokenizer."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from transformer_jax.config import Config
from transformer_jax.errors import UserError
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


def claim(workdir: Path, config: Config) -> None:
    """Make `workdir` the folder of a run of `config`, or see that it is one already.

    Raises:
        UserError: if the folder can't be written, or holds a run of another config.
    """
    path = workdir / "config.json"
    new = dataclasses.asdict(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for name, before, now in _differences(json.loads(path.read_text(encoding="utf-8")), new):
                if not name.startswith(MAY_CHANGE):
                    raise UserError(
                        f"{workdir} holds a run with config.{name}={before!r}, not {now!r}; "
                        "choose another --workdir, or delete that one."
                    )
        write_atomically(path, (json.dumps(new, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{workdir} can't be used as --workdir: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON (line {error.lineno}); choose another --workdir.") from error


def prepare_task(config: Config, workdir: Path) -> Task:
    """The task of `config`, with the tokenizer that the run in `workdir` has, or will have from now on."""
    folder = workdir / "tokenizer"
    if folder.is_dir():
        return make_task(config, {file.name: file.read_bytes() for file in sorted(folder.iterdir())})
    task = make_task(config)
    unfinished = workdir / "tokenizer.tmp"
    unfinished.mkdir(exist_ok=True)
    for name, content in task.tokenizer_files.items():
        write_atomically(unfinished / name, content)
    os.replace(unfinished, folder)
    return task


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _differences(before: Any, now: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(set(before) | set(now))
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{path}.{n}" if path else n)]
    same = before == (list(now) if isinstance(now, tuple) else now)
    return [] if same else [(path, before, now)]
