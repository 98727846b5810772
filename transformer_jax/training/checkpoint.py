"""Checkpoints of a training run. The only module that uses Orbax."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from transformer_jax.data.pipeline import Position
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, os_errors, resolved, write_atomically

JSON = Any
"""A value that `json` can write: a number, string, boolean, None, or a list or dict of such values."""
Result = TypeVar("Result")

_STATE = "state"
_METADATA = "metadata"
_PROTECTED = "protected.json"
_SMALLEST_SHARE = 1 << 20  # bytes
"""A replicated array is written by all its devices, a part each, unless the parts would be smaller than this."""
_FORMER_NAMES = {"ema_params": "average"}
"""Fields of the state that release 0.1.0 stored under another name."""


@dataclass
class Progress:
    """What a checkpoint stores beside the state, so that a resumed run equals an uninterrupted one."""

    position: Position = field(default_factory=Position)
    """Position of the next batch."""
    best_score: float = -math.inf
    best_tie: float = -math.inf
    """`evaluation.tie_break` of the best evaluation."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    unlogged: dict[str, float] = field(default_factory=dict)
    """Sums since the last line of the log."""
    minutes: float = 0.0
    """Wall-clock time up to the checkpoint, over all processes that worked on the run."""

    def add(self, sums: dict[str, Any]) -> float:
        """Add the sums of one step; returns its weight, the number of tokens predicted."""
        for name, value in sums.items():
            self.unlogged[name] = self.unlogged.get(name, 0.0) + float(value)
        return float(sums["weight"])

    def to_json(self) -> dict[str, JSON]:
        """The fields as checkpoint metadata."""
        return dataclasses.asdict(self) | {"position": list(self.position)}

    @classmethod
    def from_json(cls, metadata: dict[str, JSON]) -> "Progress":
        """The inverse of `to_json`."""
        return cls(**{**metadata, "position": Position(*metadata["position"])})


class Checkpoints:
    """The checkpoints of one run, in folders named by step.

    A checkpoint is written in the background under a temporary name and renamed when complete, so a killed run never
    leaves a partial one. Older checkpoints are deleted only after that.
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

        A step that is already saved is left alone: rewriting it would leave a moment without a checkpoint.

        Args:
            step: number of updates that made `state`.
            state: arrays in nested dicts, tuples and named tuples.
            metadata: what else a run needs to resume. Floats come back bit for bit, tuples as lists.
        """
        if step not in self.steps():
            with self._uninterrupted():
                self._orbax.save_async(
                    step, state, checkpointable_name=_STATE, force=True, custom_metadata={_METADATA: metadata}
                )

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order; waits for one that is being written."""
        if not self._is_open() and not any(self._folder.glob("[0-9]*")):
            return []
        self.wait()
        with self._uninterrupted():
            return [checkpoint.step for checkpoint in self._orbax.checkpoints]

    def latest(self) -> int | None:
        """The last of `steps()`, or None if there is none."""
        return max(self.steps(), default=None)

    def restore(self, step: int, abstract_state: PyTree) -> tuple[PyTree, dict[str, JSON]]:
        """Read a checkpoint.

        Args:
            step: one of `steps()`.
            abstract_state: the state as `jax.ShapeDtypeStruct`s. Their shardings say where the arrays go, which may be
                other devices than those the state was saved from.

        Returns:
            The state, of the tree and types of `abstract_state`, and the metadata.

        Raises:
            UserError: if the checkpoint is missing, can't be read, or holds a state other than `abstract_state`.
        """
        stored = self._stored(step)
        names = {new: old for new, old in _FORMER_NAMES.items() if old in stored.metadata}
        if names:
            fields = {names.get(name, name): value for name, value in abstract_state._asdict().items()}
            self._compare(step, stored.metadata, fields)
            read = self._read(step, fields)
            state = abstract_state._make(read[names.get(name, name)] for name in abstract_state._fields)
        else:
            self._compare(step, stored.metadata, abstract_state)
            state = self._read(step, abstract_state)
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
        self._compare(step, {"params": stored["params"]}, {"params": abstract_params})
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
        """Wait until all checkpoints are written."""
        if self._is_open():
            with self._uninterrupted():
                self._orbax.wait()

    def close(self) -> None:
        """Wait until all checkpoints are written, and end the background thread."""
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
        """Those of `steps` to keep."""
        latest = sorted(filter(self._is_scheduled, steps))[-self._keep :]
        return {step for step in steps if step in latest or step in (max(steps), self._protected)}

    @cached_property
    def _orbax(self) -> Any:
        # Slow to import, and a new run needs it only when it first saves.
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
        # Orbax only logs that it can't read the description of the arrays or our metadata.
        if stored.metadata is None or _METADATA not in (stored.custom_metadata or {}):
            raise self._damaged(step, "one of its files is missing or damaged")
        return stored

    def _read(self, step: int, abstract: PyTree) -> Any:
        return self._guard(step, lambda: self._orbax.load(step, abstract, checkpointable_name=_STATE))

    def _guard(self, step: int, read: Callable[[], Result]) -> Result:
        try:
            with self._uninterrupted():
                return read()
        # Orbax and TensorStore raise many unrelated types for damaged files.
        except Exception as error:
            raise self._damaged(step, type(error).__name__) from error

    def _damaged(self, step: int, reason: str) -> UserError:
        return UserError(
            f"{self._folder / str(step)} can't be read as a checkpoint ({reason}); "
            "delete that folder to resume from the checkpoint before."
        )

    def _compare(self, step: int, stored: PyTree, abstract: PyTree) -> None:
        have, want = _leaves(stored), _leaves(abstract)
        folder = self._folder / str(step)
        remedy = "train with the configuration it was made with, or into another workdir."
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
    """Orbax's interface for asking which checkpoints to keep."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._checkpoints.preserved([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _leaves(tree: PyTree) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
