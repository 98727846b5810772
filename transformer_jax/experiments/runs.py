"""What the folders of runs say, read without JAX: state, config, logs and scores, however damaged a file is."""

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformer_jax.system import LARGEST_FLOAT, LARGEST_INT, UserError
from transformer_jax.system.files import AnyPath, as_path, os_errors, read_file, read_json, resolved
from transformer_jax.system.ownership import OWNER_FILE, has_live_owner
from transformer_jax.system.runtime import show_error
from transformer_jax.tasks.registry import lower_is_better

State = Literal["running", "finished", "stopped", "empty"]
DEFAULT_METRIC = "loss"
"""Of runs whose config can't be read; every task of ours has it."""

_MODEL_FILE = "model.safetensors"
_MARKS = {"tokenizer", "checkpoints", "log.jsonl"}
"""One of these stands beside the config of a run."""


@dataclass(frozen=True)
class RunSummary:
    """A run in a few values; None where they are not known, or not yet."""

    path: str
    state: State
    """running: a program works on it; finished: it has ended as its config says; stopped: it can be resumed;
    empty: it has neither logged nor saved anything."""
    task: str | None
    metric: str
    """That of `best` and `final`: the run's own, which selects its best checkpoint, unless another was asked for."""
    step: int
    """Number of updates, as far as the log or a checkpoint shows."""
    num_steps: int | None
    best: float | None
    """Best score of an evaluation, the first among equals."""
    best_step: int | None
    final: float | None
    """Score of the written model, found with the configured search."""
    minutes: float | None
    """Time at work, interruptions excluded."""
    tokens_per_second: float | None
    """The median of the log's lines."""
    problems: tuple[str, ...]
    """A sentence for each file that could not be read, or not all of it."""


@dataclass(frozen=True)
class RunRecord:
    """All that could be read of the folder of a run."""

    path: AnyPath
    state: State
    config: Mapping[str, Any]
    """Content of `config.json`; empty if unreadable."""
    log: Sequence[Mapping[str, Any]]
    """Lines of `log.jsonl`, each with an integer `step`."""
    timing: Sequence[Mapping[str, Any]]
    """The same of `timing.jsonl`."""
    finished: Mapping[str, Any]
    """Content of `finished.json`; empty of runs that have not ended."""
    checkpoints: Sequence[int]
    """Steps of the checkpoints, ascending."""
    problems: tuple[str, ...]

    @property
    def task(self) -> str | None:
        """Name of the task; None if unknown."""
        return _of_type(str, self.config, "task")

    @property
    def metric(self) -> str:
        """The metric that selects the best checkpoint."""
        return _of_type(str, self.config, "training", "metric") or DEFAULT_METRIC

    def metrics(self) -> list[str]:
        """Names of the scores that evaluations have, in the order of the log."""
        lines = [line for line in self.log if line.get("kind") in ("evaluation", "final")]
        return list(dict.fromkeys(name for line in lines for name in line if name != "step" and _is_number(line[name])))

    def curve(self, name: str, kind: str = "evaluation") -> tuple[list[int], list[float]]:
        """Steps, ascending, and values of a number in the log; lines without it, or with null, are left out.

        Args:
            name: such as "bleu" or "loss".
            kind: of the lines: "evaluation", on validation data, or "train".
        """
        points = {
            line["step"]: float(line[name])
            for line in (*self.log, *self.timing)
            if line.get("kind") == kind and _is_number(line.get(name))
        }
        steps = sorted(points)
        return steps, [points[step] for step in steps]

    def summary(self, metric: str | None = None) -> RunSummary:
        """The run in a few values; those of `metric`, or else of its own."""
        metric = metric or self.metric
        steps, values = self.curve(metric)
        losses = dict(zip(*self.curve("loss"), strict=True))
        sign = -1.0 if lower_is_better(self.task or "", metric) else 1.0
        # As the run itself ranks: the loss decides between equal scores, and the first of equals is kept.
        ranked = [(sign * value, -losses.get(step, math.inf), -step) for step, value in zip(steps, values, strict=True)]
        _, _, best = max(ranked, default=(0.0, 0.0, 0))
        minutes = [line["minutes"] for line in self.timing if _is_number(line.get("minutes"))]
        _, rates = self.curve("tokens_per_second", "train")
        final = next((line.get(metric) for line in reversed(self.log) if line.get("kind") == "final"), None)
        if final is None:
            final = self.finished.get("scores", {}).get(metric)
        return RunSummary(
            path=str(self.path),
            state=self.state,
            task=self.task,
            metric=metric,
            step=max([0, *self.checkpoints, *(line["step"] for line in self.log)]),
            num_steps=_of_type(int, self.config, "training", "num_steps"),
            best=values[steps.index(-best)] if ranked else None,
            best_step=-best if ranked else None,
            final=float(final) if _is_number(final) else None,
            minutes=float(max(minutes)) if minutes else None,
            tokens_per_second=statistics.median(rates) if rates else None,
            problems=self.problems,
        )


def read_run(path: str | AnyPath) -> RunRecord:
    """Read the folder of a run, which may be at work; what can't be read is named in `problems`.

    Raises:
        UserError: if it is not the folder of a run.
    """
    folder = as_path(path)
    if not _is_run(_names(folder)):
        raise UserError(f"{path} is not the folder of a run; name one, such as runs/numerals.")
    problems: list[str] = []
    is_running = has_live_owner(folder)  # first, for it may end meanwhile
    config = read_object(folder / "config.json", problems.append)
    if config is None and not is_running:
        problems.append(f"{folder / 'config.json'} is missing; what the run was to do is not known.")
    finished = read_object(folder / "finished.json", problems.append) or {}
    if not isinstance(finished.get("scores", {}), dict):
        finished = finished | {"scores": {}}
    log, timing = (
        _read_lines(folder / f"{name}.jsonl", problems.append, is_growing=is_running) for name in ("log", "timing")
    )
    checkpoints = sorted(int(name) for name in _names(folder / "checkpoints") if name.isascii() and name.isdecimal())
    has_begun = bool(log or checkpoints or finished)
    state: State = "running" if is_running else "finished" if finished else "stopped" if has_begun else "empty"
    return RunRecord(folder, state, config or {}, log, timing, finished, checkpoints, tuple(problems))


def find_runs(path: str | AnyPath, report: Callable[[str], None] = show_error) -> list[AnyPath]:
    """The run in a folder, or all runs below it, in natural order (`trial-2` before `trial-10`).

    Args:
        path: a run, or a folder of runs at any depth.
        report: called with a sentence for each folder below it that can't be read.

    Raises:
        UserError: if the folder can't be read, or there is no run.
    """
    folder = as_path(path)
    try:
        with os_errors(folder):
            list(folder.iterdir())
    except NotADirectoryError as error:
        raise UserError(f"{path} is not a folder; name a run, or a folder of runs.") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); name a run, or a folder of runs.") from error
    found = list(_runs_below(folder, set(), report))
    if not found and _MODEL_FILE in _names(folder):
        raise UserError(f"{path} is a model folder, not a run; transformer-jax info {path} describes it.")
    if not found:
        raise UserError(f"{path} holds no run; name another folder, or train a model first.")
    return found


def is_run(path: str | AnyPath) -> bool:
    """Whether a folder looks like that of a run, whatever its files say."""
    return _is_run(_names(as_path(path)))


def _runs_below(folder: AnyPath, seen: set[AnyPath], report: Callable[[str], None]) -> Iterator[AnyPath]:
    if (place := resolved(folder)) in seen:  # a link to a folder above it
        return
    seen.add(place)
    try:
        with os_errors(folder):
            entries = sorted(folder.iterdir(), key=lambda entry: natural(entry.name))
    except OSError as error:
        report(f"{folder} can't be read ({error.strerror}); runs in it are left out.")
        return
    if _is_run({entry.name for entry in entries}):
        yield folder
        return
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir():
            yield from _runs_below(entry, seen, report)


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers within names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def _is_run(names: set[str]) -> bool:
    if "log.jsonl" in names or names == {OWNER_FILE}:  # which reads its data before it writes anything else
        return True
    return "config.json" in names and bool(_MARKS & names) and _MODEL_FILE not in names


def _names(folder: AnyPath) -> set[str]:
    """Names of the entries of a folder; none if it can't be read."""
    try:
        with os_errors(folder):
            return {entry.name for entry in folder.iterdir()}
    except OSError:
        return set()


def read_object(path: AnyPath, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is none, after a report unless there is no file."""
    try:
        values = read_json(path)
        if isinstance(values, dict):
            return values
        reason = "not a JSON object"
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = str(error.strerror)
    except ValueError as error:
        reason = f"not valid JSON: {error}"
    report(f"{path} can't be read ({reason}); the run is shown without it.")
    return {}


def _read_lines(path: AnyPath, report: Callable[[str], None], *, is_growing: bool) -> list[dict[str, Any]]:
    """The JSON objects with an integer `step` among the lines of a file.

    Args:
        path: the file, which may be missing.
        report: called with a sentence if there are other lines.
        is_growing: whether a program may just be writing the last line.
    """
    try:
        content = read_file(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        report(f"{path} can't be read ({error.strerror}); the run is shown without it.")
        return []
    *lines, cut = content.split(b"\n")
    records = [_record(line) for line in lines]
    wrong = [number for number, record in enumerate(records, 1) if record is None]
    if wrong:
        others = f" and {len(wrong) - 1:,} others" if len(wrong) > 1 else ""
        report(f"{path}: line {wrong[0]:,}{others} can't be read as a log's; the run is shown without.")
    if cut and not is_growing:
        report(f"{path} ends within a line, as after a kill; the run is shown without that line.")
    return [record for record in records if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if type(step) is int and 0 <= step <= LARGEST_INT else None


def _is_number(value: Any) -> bool:
    """Whether it is a finite number, as float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT


def _of_type(kind: type, values: Any, *names: str) -> Any:
    """The value of nested objects under these names; None if it is missing or of another type."""
    for name in names:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if type(values) is kind else None
