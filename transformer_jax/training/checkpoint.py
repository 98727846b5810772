"""Checkpoints of a training run. The only module that uses Orbax."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from transformer_jax.system import UserError, distributed
from transformer_jax.system.files import (
    NO_CHECKSUMS,
    AnyPath,
    find_damage,
    is_remote,
    os_errors,
    read_json,
    resolved,
    write_atomically,
    write_checksums,
)
from transformer_jax.system.runtime import reason_of, silence_pending_writes
from transformer_jax.training.step import JSON, all_finite, leaves_by_name, require_same

Result = TypeVar("Result")

_STATE = "state"
_METADATA = "metadata"
_DIGEST = "sha256"
"""Stored beside our metadata: their digest. Where there is one, there are checksums of the files, too."""
_ORBAX_METADATA = "_CHECKPOINT_METADATA"  # Orbax adds times to this file when it has written all else
_PROTECTED = "protected.json"
_PLAIN_PATH = re.compile(r"[\w/.+=,@ -]+")  # nothing is a wildcard or an escape to Orbax and TensorStore
_SMALLEST_SHARE = 1 << 20  # bytes
"""A replicated array is written by all its devices, a part each, unless the parts would be smaller than this."""
_FORMER_NAMES = {"ema_params": "average"}  # of fields of the state, in release 0.1.0


class DamagedCheckpoint(UserError):
    """A checkpoint that is missing, or not as it was written."""

    def __init__(self, finding: str, remedy: str) -> None:
        super().__init__(f"{finding}; {remedy}.")
        self.finding = finding


class Checkpoints:
    """The checkpoints of one run, in folders named by step.

    A checkpoint is written in the background under a temporary name, gets checksums of its files, and is renamed when
    complete, so a killed run never leaves a partial one. Older checkpoints are deleted only after that. Reading one
    compares the checksums; checkpoints of releases before 0.2.0 have none.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        keep: int,
        is_scheduled: Callable[[int], bool] = lambda step: True,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Open or create `folder`.

        Args:
            folder: the folder of the checkpoints.
            keep: number of latest scheduled checkpoints to keep, besides the last and the protected one.
            is_scheduled: whether the checkpoint of a step counts towards `keep`. One saved because of an interruption
                should not, so that the run keeps the same checkpoints with or without it.
            uninterrupted: a context in which signal handlers do not raise, which would break Orbax.

        Raises:
            UserError: if `keep` is not positive, or `folder` can't be used.
        """
        if keep < 1:
            raise UserError(f"config.training.keep_checkpoints is {keep}, but must be at least 1.")
        self._folder = resolved(folder)
        self._keep, self._is_scheduled, self._uninterrupted = keep, is_scheduled, uninterrupted
        self._protected: int | None = None
        self._damaged_steps: set[int] = set()
        self._saving = 0
        self._resources = ExitStack()
        if is_remote(folder) and not _PLAIN_PATH.fullmatch(str(folder).removeprefix("gs://")):
            raise UserError(f"{folder} has characters that checkpoints can't have in a remote path; choose another.")
        try:
            with os_errors(folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: protected again by the run
                self._protected = read_json(self._folder / _PROTECTED)["step"]
        except OSError as error:
            raise UserError(f"{folder} can't hold checkpoints: {error.strerror}; choose another folder.") from error

    def save(self, step: int, state: PyTree, metadata: dict[str, JSON]) -> None:
        """Write a checkpoint in the background; `state` may be donated or deleted as soon as this returns.

        A step that is already saved, and not damaged, is left alone: rewriting it would leave a moment without a
        checkpoint.

        Args:
            step: number of updates that made `state`.
            state: arrays in nested dicts, tuples and named tuples.
            metadata: what else a run needs to resume. Floats come back bit for bit, tuples as lists.

        Raises:
            UserError: if this checkpoint, or the one before, can't be written.
        """
        if step in self.steps():
            return
        overwrite = step in self._damaged_steps
        self._damaged_steps.discard(step)
        self._saving = step
        self._written(
            lambda: self._orbax.save_async(
                step,
                state,
                checkpointable_name=_STATE,
                force=True,
                overwrite=overwrite,
                custom_metadata={_METADATA: metadata, _DIGEST: _digest(metadata)},
            )
        )

    def read_back(self, step: int, params: PyTree) -> None:
        """Require that a checkpoint just saved can be read, on the example of its parameters.

        Raises:
            UserError: if it can't, or the parameters are others.
        """
        self.wait()
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), params)
        try:
            found = self.restore_params(step, abstract)
        except UserError as error:
            raise UserError(
                f"What was saved in {self._folder} can't be read back; choose another --workdir. {error}"
            ) from error
        for name, leaf in leaves_by_name(params).items():
            shards = zip(leaf.addressable_shards, leaves_by_name(found)[name].addressable_shards, strict=True)
            if not all(np.array_equal(saved.data, read.data) for saved, read in shards):
                raise UserError(f"{name} comes back from {self._folder} with other values; choose another --workdir.")

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints that are not known to be damaged; waits for one that is being written."""
        if not self._is_open() and not any(entry.name[0].isdecimal() for entry in self._folder.iterdir()):
            return []
        self.wait()
        with self._uninterrupted():
            steps = [checkpoint.step for checkpoint in self._orbax.checkpoints]
        return [step for step in steps if step not in self._damaged_steps]

    def restore_newest(
        self, abstract_state: PyTree, report: Callable[[str], None]
    ) -> tuple[PyTree, dict[str, JSON]] | None:
        """Read the newest checkpoint that is sound, as `restore` does.

        Args:
            abstract_state: see `restore`.
            report: called with a sentence about each newer one that is damaged.

        Returns:
            The state and the metadata, or None if there is no checkpoint.

        Raises:
            UserError: if there are some, but all are damaged, or the newest one holds another state.
        """
        steps = distributed.broadcast(self.steps())
        for step in reversed(steps):
            try:
                return self.restore(step, abstract_state)
            except DamagedCheckpoint as error:
                self._damaged_steps.add(step)
                report(f"{error.finding}; an earlier one is used.")
        if steps:
            raise UserError(
                f"{self._folder} has no sound checkpoint, all are damaged ({', '.join(map(str, steps))}); "
                "put back a copy of one, or choose another --workdir to start over."
            )
        return None

    def restore(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, JSON]]:
        """Read a checkpoint.

        Args:
            step: one of `steps()`.
            abstract_state: the state as `jax.ShapeDtypeStruct`s. Their shardings say where the arrays go, which may be
                other devices than those the state was saved from.

        Returns:
            The state, of the tree and types of `abstract_state`, and the metadata.

        Raises:
            DamagedCheckpoint: if the checkpoint is missing, or not as it was written.
            UserError: if it holds a state other than `abstract_state`.
        """
        stored = self._stored(step)
        names = {new: old for new, old in _FORMER_NAMES.items() if old in stored.metadata}
        abstract = abstract_state
        if names:
            abstract = {names.get(name, name): value for name, value in abstract_state._asdict().items()}
        require_same(self._folder / str(step), stored.metadata, abstract)
        state = self._read(step, abstract)
        if not all_finite(state):  # as release 0.1.0 saved it
            raise self._damaged(step, "a number in it is not finite")
        if names:
            state = abstract_state._make(state[names.get(name, name)] for name in abstract_state._fields)
        return state, stored.custom_metadata[_METADATA]

    def restore_params(self, step: int, abstract_params: PyTree) -> PyTree:
        """Read only the part `params` of a checkpoint, for averaging (section 6.1).

        Args:
            step: one of `steps()`.
            abstract_params: the parameters as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            UserError: see `restore`.
        """
        stored = self._stored(step).metadata
        if not isinstance(stored, dict) or "params" not in stored:
            raise UserError(f"{self._folder / str(step)} has no params; it was written by another program.")
        require_same(self._folder / str(step), {"params": stored["params"]}, {"params": abstract_params})
        from orbax.checkpoint import v1 as ocp  # type: ignore[import-untyped]

        # Orbax skips placeholders.
        partial = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored) | {"params": abstract_params}
        return self._read(step, partial)["params"]

    def protect(self, step: int) -> None:
        """Keep the checkpoint of `step` at any age, in place of the one protected before.

        Raises:
            ValueError: if there is no checkpoint of `step`.
        """
        if step not in self.steps():
            raise ValueError(f"No checkpoint of step {step} in {self._folder}.")
        self._protected = step
        if jax.process_index() == 0:
            write_atomically(self._folder / _PROTECTED, json.dumps({"step": step}).encode())

    def wait(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            UserError: if that fails.
        """
        if self._is_open():
            self._written(lambda: self._orbax.wait())

    def close(self) -> None:
        """Wait until all checkpoints are written, and end the background thread.

        Raises:
            UserError: if that fails; not again if `save` or `wait` has raised it.
        """
        with self._resources:
            if self._is_open():
                self._written(lambda: self._orbax.close())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def preserved(self, steps: Sequence[int]) -> set[int]:
        """Those of `steps` to keep, and what could not be read: the storage, not the checkpoint, may be at fault."""
        sound = [step for step in steps if step not in self._damaged_steps]
        latest = sorted(filter(self._is_scheduled, sound))[-self._keep :]
        return {step for step in steps if step not in sound or step in (*latest, max(sound), self._protected)}

    @cached_property
    def _orbax(self) -> Any:
        # Slow to import, and a new run needs it only when it first saves.
        from orbax.checkpoint import v1 as ocp

        silence_pending_writes()
        # It logs the errors that it raises, too, in hundreds of lines.
        logger, is_by_another = logging.getLogger("absl"), lambda record: "orbax" not in Path(record.pathname).parts
        logger.addFilter(is_by_another)
        self._resources.callback(logger.removeFilter, is_by_another)
        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = _SMALLEST_SHARE
        # A function, since Orbax makes deep copies of its context, and thereby of the object of a method.
        context.async_options.post_finalization_callback = lambda: self._add_checksums()
        return ocp.training.Checkpointer(
            self._folder_for_orbax(),
            preservation_policy=_Preservation(self),
            cleanup_tmp_directories=True,
            context=context,
        )

    def _is_open(self) -> bool:
        return "_orbax" in vars(self)

    def _folder_for_orbax(self) -> AnyPath:
        """The folder under a path without wildcards, which Orbax would expand: it would lose every checkpoint."""
        if is_remote(self._folder) or _PLAIN_PATH.fullmatch(str(self._folder)):
            return self._folder
        link = type(self._folder)(self._resources.enter_context(tempfile.TemporaryDirectory())) / "checkpoints"
        if not _PLAIN_PATH.fullmatch(str(link)):
            raise UserError(f"{self._folder} can't hold checkpoints because of its special characters; choose another.")
        os.symlink(self._folder, link, target_is_directory=True)
        return link

    def _add_checksums(self) -> None:
        """Called when all files are written, before the folder gets its name."""
        if distributed.is_main():
            for entry in self._of_step(self._saving):
                write_checksums(entry, leaving_out=(_ORBAX_METADATA, "commit_success.txt"))

    def _of_step(self, step: int) -> list[AnyPath]:
        """The folder of a checkpoint, or the temporary one of an unfinished one."""
        with os_errors(self._folder):
            entries = self._folder.iterdir() if self._folder.exists() else ()
            return [entry for entry in entries if entry.name.partition(".")[0] == str(step)]

    def _written(self, write: Callable[[], Any]) -> None:
        """Call a function of Orbax that raises errors of the background thread."""
        try:
            with self._uninterrupted():
                write()
        except Exception as error:  # Orbax and TensorStore raise many unrelated types
            distributed.raise_if_collective(error)
            self._abandon()
            raise UserError(
                f"The checkpoint of step {self._saving} can't be written to {self._folder} ({reason_of(error)}); "
                "earlier ones are intact: make room, or mend the cause, and rerun the command to resume."
            ) from error

    def _abandon(self) -> None:
        """Remove an unfinished checkpoint, and end Orbax's threads."""
        with suppress(Exception):
            vars(self).pop("_orbax").close()
        if distributed.is_main() and not is_remote(self._folder):
            for entry in self._of_step(self._saving):
                if entry.name != str(self._saving):
                    shutil.rmtree(str(entry), ignore_errors=True)

    def _stored(self, step: int) -> Any:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise DamagedCheckpoint(f"{self._folder} has no checkpoint of step {step}", f"it has: {known}")
        # Before Orbax reads anything, so that it follows no link.
        damage = find_damage(self._folder / str(step)) if distributed.is_main() else None
        if (damage := distributed.broadcast(damage)) not in (None, NO_CHECKSUMS):
            raise self._damaged(step, str(damage))
        stored = self._guard(step, lambda: self._orbax.metadata(step))
        # Orbax only logs that it can't read the description of the arrays or our metadata.
        if stored.metadata is None or _METADATA not in (stored.custom_metadata or {}):
            raise self._damaged(step, "one of its files is missing or damaged")
        digest = stored.custom_metadata.get(_DIGEST)
        if damage is not None and digest is not None:  # checkpoints of earlier releases have neither
            raise self._damaged(step, NO_CHECKSUMS)
        if damage is None and digest != _digest(stored.custom_metadata[_METADATA]):
            raise self._damaged(step, f"{_ORBAX_METADATA} is damaged")
        return stored

    def _read(self, step: int, abstract: PyTree) -> Any:
        return self._guard(step, lambda: self._orbax.load(step, abstract, checkpointable_name=_STATE))

    def _guard(self, step: int, read: Callable[[], Result]) -> Result:
        try:
            with self._uninterrupted():
                return read()
        except Exception as error:  # see `_written`
            distributed.raise_if_collective(error)
            raise self._damaged(step, type(error).__name__) from error

    def _damaged(self, step: int, reason: str) -> DamagedCheckpoint:
        finding = f"{self._folder / str(step)} can't be read as a checkpoint ({reason})"
        return DamagedCheckpoint(finding, "delete that folder to resume from the checkpoint before")


class _Preservation:
    """Orbax's interface for asking which checkpoints to keep."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._checkpoints.preserved([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _digest(metadata: dict[str, JSON]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
