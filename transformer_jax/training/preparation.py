"""What is settled before a run begins: that its config can work, and that all processes are at the same run."""

import dataclasses
import secrets
import time
from collections.abc import Callable
from typing import Any

import jax

from transformer_jax.config import Config
from transformer_jax.system import distributed
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, write_atomically
from transformer_jax.tasks.base import Task
from transformer_jax.training.origin import Origin, task_from
from transformer_jax.training.workdir import claim, has_begun

SHARED_SECONDS = 20.0
"""Network file systems show a new file to others after so long at the latest."""


def check(config: Config) -> None:
    """Refuse numbers that would be found impossible only after some training."""
    positive = {
        "training": ("num_steps", "log_every", "eval_every", "checkpoint_every", "average_last"),
        "optim": ("accumulate_steps",),
        "decoding": ("beam_size", "batch_size"),
    }
    for group, names in positive.items():
        for name in names:
            value = getattr(getattr(config, group), name)
            if value < 1:
                raise UserError(f"config.{group}.{name} is {value}, but must be at least 1.")
    if config.tokenizer.max_texts < 0:
        raise UserError(f"config.tokenizer.max_texts is {config.tokenizer.max_texts}, but must be at least 0.")


def agree_on(config: Config, workdir: AnyPath) -> None:
    """Refuse to go on if other processes have another config or another work folder.

    Raises:
        UserError: at all of them alike.
    """
    if jax.process_count() != distributed.process_count():
        raise UserError(
            f"JAX finds {jax.process_count()} processes here, but only {distributed.process_count()} met; start all of "
            "them with --distributed, or with --coordinator, --num_processes and --process_id."
        )
    if distributed.process_count() == 1:
        return
    distributed.assert_equal({"--workdir": str(workdir), **_fields(config.to_dict(), "config")})
    _wait_to_share(
        lambda: len(set(distributed.all_gather(has_begun(workdir)))) == 1,
        f"{workdir} holds a run at some processes only",
    )


def common_task(config: Config, origin: Origin) -> Task:
    """The task, the same at all processes: where a tokenizer is trained, the first one does that.

    Raises:
        UserError: if the data can't be read, or is not the same everywhere.
    """
    if origin.tokenizer_files is None and not distributed.is_main():
        origin = dataclasses.replace(origin, tokenizer_files=distributed.broadcast_files(None))
        task = task_from(config, origin)
    else:
        task = task_from(config, origin)
        if origin.tokenizer_files is None:
            distributed.broadcast_files(task.tokenizer_files)
    if distributed.process_count() > 1:
        distributed.assert_equal({"The data": task.notes, "The digest of the training data": task.batches.digest()})
    return task


def claim_for_all(workdir: AnyPath, config: Config, task: Task, origin: Origin) -> None:
    """Make `workdir` the folder of the run; the first process does, and the others look whether they see it.

    Raises:
        UserError: if the folder can't be used, or is not shared by all.
    """
    if distributed.is_main():
        claim(workdir, config, task, origin)
    if distributed.process_count() == 1:
        return
    # Under a name that no other folder has.
    mark = workdir / distributed.broadcast(f".{secrets.token_hex(8)}")
    if distributed.is_main():
        write_atomically(mark, b"")
    distributed.barrier()
    _wait_to_share(mark.exists, f"{workdir} of this process is not that of process 0")
    distributed.barrier()
    if distributed.is_main():
        mark.unlink(missing_ok=True)


def _wait_to_share(is_shared: Callable[[], bool], otherwise: str) -> None:
    """Return when the work folder looks as it must to this process; `otherwise` says what is wrong in the end."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not is_shared():
        if time.monotonic() > deadline:
            raise UserError(
                f"{otherwise}; --workdir must be a folder that all share, such as one of NFS, or gs://BUCKET/FOLDER."
            )
        time.sleep(0.5)


def _fields(group: dict[str, Any], name: str) -> dict[str, Any]:
    """All fields of a group and of those in it, by their full names."""
    fields: dict[str, Any] = {}
    for key, value in group.items():
        fields |= _fields(value, f"{name}.{key}") if isinstance(value, dict) else {f"{name}.{key}": value}
    return fields
