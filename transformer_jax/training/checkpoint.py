"""Checkpoints of a training run: the only module that knows Orbax."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, os_errors, resolved, write_atomically

JSON = Any
"""What `json` can write: numbers, strings, booleans, None, lists and dicts of those."""
Result = TypeVar("Result")

_STATE = "state"
_METADATA = "metadata"
_PROTECTED = "protected.json"
_SMALLEST_SHARE = 1 << 20  # bytes
"""An array that every device holds is written by all of them, a part each, unless the parts would be smaller."""


class Checkpoints:
    """The checkpoints of one run, in folders named by step.

    A checkpoint is written in the background under another name and renamed when complete, so that a killed run never
    leaves one half-written under its own name. Older ones are deleted only after that.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        keep: int,
        counts: Callable[[int], bool] = lambda step: True,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Open or create `folder`.

        Args:
            folder: where the checkpoints are.
            keep: how many of the latest that count stay, besides the last and the protected one.
            counts: whether one of this step counts. One that an interruption leaves should not: with it or without, the
                same others stay.
            uninterrupted: a context in which no handler of signals raises: Orbax would not survive it.

        Raises:
            UserError: if `keep` is not positive, or `folder` can't be used.
        """
        if keep < 1:
            raise UserError(f"config.training.keep_checkpoints is {keep}, but must be at least 1.")
        self._folder = resolved(folder)
        self._keep, self._counts, self._uninterrupted = keep, counts, uninterrupted
        self._protected: int | None = None
        try:
            with os_errors(folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                stored = (self._folder / _PROTECTED).read_bytes() if (self._folder / _PROTECTED).exists() else None
            if stored is not None:
                self._protected = json.loads(stored)["step"]
        except OSError as error:
            raise UserError(f"{folder} can't hold checkpoints: {error.strerror}; choose another folder.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / _PROTECTED} is damaged; delete that file.") from error

    def save(self, step: int, state: PyTree, metadata: dict[str, JSON]) -> None:
        """Write a checkpoint in the background; `state` may be donated or deleted as soon as this returns.

        A step that is saved already stays as it is: to write it anew would leave a moment without it.

        Args:
            step: how many updates made `state`.
            state: arrays in nested dicts, tuples and named tuples.
            metadata: what else a run needs to go on. Floats come back bit for bit, tuples as lists.
        """
        if step not in self.steps():
            with self._uninterrupted():
                self._orbax.save_async(
                    step, state, checkpointable_name=_STATE, force=True, custom_metadata={_METADATA: metadata}
                )

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order; waits for one that is being written."""
        if not self._is_open() and not any(self._folder.glob("[0-9]*")):
            return []
        self.wait()
        with self._uninterrupted():
            return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def latest(self) -> int | None:
        """The last of `steps()`, or None if there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, JSON]]:
        """Read a checkpoint.

        Args:
            step: one of `steps()`.
            like: the state as `jax.ShapeDtypeStruct`s, whose shardings say where the arrays go. These may be other
                devices than those that the state was saved from.

        Returns:
            The state, of the same tree and types as `like`, and the metadata.

        Raises:
            UserError: if the checkpoint is missing, can't be read, or holds another state than `like`.
        """
        stored = self._stored(step)
        self._compare(step, stored.metadata, like)
        return self._read(step, like), stored.custom_metadata[_METADATA]

    def restore_params(self, step: int, like: PyTree) -> PyTree:
        """Read the part `params` of a checkpoint alone, as averaging needs it (section 6.1).

        Args:
            step: one of `steps()`.
            like: the parameters as `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            UserError: see `restore`.
        """
        stored = self._stored(step).metadata
        if not isinstance(stored, dict) or "params" not in stored:
            raise UserError(f"{self._folder / str(step)} holds no params; it was written by another program.")
        self._compare(step, {"params": stored["params"]}, {"params": like})
        from orbax.checkpoint import v1 as ocp  # type: ignore[import-untyped]

        # Orbax leaves alone what is a placeholder.
        partial = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored) | {"params": like}
        return self._read(step, partial)["params"]

    def protect(self, step: int) -> None:
        """Keep the checkpoint of `step` however old it grows, in place of the one protected before.

        Raises:
            ValueError: if it is not there.
        """
        if step not in self.steps():
            raise ValueError(f"No checkpoint of step {step} in {self._folder}.")
        self._protected = step
        if jax.process_index() == 0:
            write_atomically(self._folder / _PROTECTED, json.dumps({"step": step}).encode())

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._is_open():
            with self._uninterrupted():
                self._orbax.wait()

    def close(self) -> None:
        """Wait, and end the background thread."""
        if self._is_open():
            with self._uninterrupted():
                self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def preserved(self, steps: Sequence[int]) -> set[int]:
        """Those of `steps` that are not to be deleted."""
        latest = sorted(filter(self._counts, steps))[-self._keep :]
        return {step for step in steps if step in latest or step in (max(steps), self._protected)}

    @cached_property
    def _orbax(self) -> Any:
        # Slow to import, and a run that begins needs it only when it saves.
        from orbax.checkpoint import v1 as ocp

        context = ocp.Context()
        context.array.saving.min_slice_bytes_for_replica_parallel = _SMALLEST_SHARE
        return ocp.training.Checkpointer(
            self._folder, preservation_policy=_Preservation(self), cleanup_tmp_directories=True, context=context
        )

    def _is_open(self) -> bool:
        return "_orbax" in vars(self)

    def _stored(self, step: int) -> Any:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self._folder} has no checkpoint of step {step}; it has: {known}.")
        stored = self._guard(step, lambda: self._orbax.metadata(step))
        # Where Orbax can't read what describes the arrays, or our metadata, it says so in its own log only.
        if stored.metadata is None or _METADATA not in (stored.custom_metadata or {}):
            raise self._damaged(step, "a file of it is missing or damaged")
        return stored

    def _read(self, step: int, like: PyTree) -> Any:
        return self._guard(step, lambda: self._orbax.load(step, like, checkpointable_name=_STATE))

    def _guard(self, step: int, read: Callable[[], Result]) -> Result:
        try:
            with self._uninterrupted():
                return read()
        # Orbax and TensorStore tell of damaged files by exceptions of many unrelated types.
        except Exception as error:
            raise self._damaged(step, type(error).__name__) from error

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder / str(step)} can't be read as a checkpoint ({reason}); "
            "delete that folder to go on from the one before."
        )

    def _compare(self, step: int, stored: PyTree, like: PyTree) -> None:
        have, want = _leaves(stored), _leaves(like)
        folder = self._folder / str(step)
        remedy = "train with the configuration that it was made with, or into another workdir."
        missing = sorted(set(want) - set(have))
        if missing:
            raise UserError(f"{folder} lacks {missing[0]}, which this configuration needs; {remedy}")
        foreign = sorted(set(have) - set(want))
        if foreign:
            raise UserError(f"{folder} holds {foreign[0]}, which this configuration does not have; {remedy}")
        for name, leaf in want.items():
            if _kind(have[name]) != _kind(leaf):
                raise UserError(
                    f"{name} is {_kind(have[name])} in {folder}, but {_kind(leaf)} in this configuration; {remedy}"
                )


class _Preservation:
    """Orbax's way of asking which checkpoints to spare."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        spared = self._checkpoints.preserved([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in spared for checkpoint in checkpoints]


def _leaves(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
