"""The log of a run: JSON lines, what trackers get of them, and a progress bar or plain lines on the terminal."""

import json
import math
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from transformer_jax.system import finite
from transformer_jax.system.files import AnyPath, read_file, resolved, write_atomically
from transformer_jax.system.runtime import Shown, show
from transformer_jax.training.mirror import Mirror
from transformer_jax.training.trackers import KINDS, Record
from transformer_jax.training.tracking import TRACKERS_FILE, Trackers

Value = float | int | str | None

_FILES = ("log", "timing", "samples")
SHOWN = {"loss": "loss {}", "tokens_per_second": "{} tokens/s"}
"""Values that the progress bar shows, and how; plain lines show all."""
BAR_SECONDS = 0.5
"""The bar moves this often, at most."""


class RunLog:
    """The log of one run, as files in its folder and on the terminal.

    `log.jsonl` holds the reproducible values, `timing.jsonl` the others, and `samples.jsonl` outputs; trackers get
    the numbers of the first two. Files in remote folders lag a little, see `Mirror`.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        first_step: int,
        num_steps: int,
        verbose: bool = False,
        trackers: Sequence[str] = ("tensorboard",),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log.

        Lines of later steps, left by a run that was killed after its last checkpoint, are removed, and so is the
        evaluation at `first_step`: the resumed run repeats them. Infinity and NaN are written as null.

        Args:
            workdir: folder of the run, whose name is that of the run for its trackers.
            first_step: number of steps that the run has made.
            num_steps: number of steps that it makes in all.
            verbose: whether to show details.
            trackers: keys of `TRACKERS`.
            config: what trackers show of the run, all fields in nested dicts.
        """
        self._mirror = Mirror(workdir, [*(f"{name}.jsonl" for name in _FILES), TRACKERS_FILE])
        self._files = {}
        for name in _FILES:
            path = self._mirror.local / f"{name}.jsonl"
            _cut(path, first_step)
            self._files[name] = path.open("a", encoding="utf-8")
        self._said: set[str] = set()
        self._verbose = verbose
        self._display = _Bar(first_step, num_steps) if Shown(sys.stdout).isatty() else _Lines(num_steps)
        self._trackers = Trackers(
            trackers,
            self._mirror,
            _history(self._mirror.local),
            name=_run_name(resolved(workdir)),
            config=config or {},
            first_step=first_step,
            say=self.say,
        )

    def advance(self, step: int) -> None:
        """Show that `step` updates have been made."""
        self._display.advance(step)

    def train(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Log training metrics.

        Args:
            step: number of updates so far.
            values: reproducible values, such as `loss`, `lr`, `tokens`.
            timing: values that differ between runs, such as `tokens_per_second`, `minutes`.
        """
        shown = {name: value for name, value in values.items() if "/" not in name}  # norms by layer may be hundreds
        self._display.train(step, {**shown, **timing})
        self._write("train", step, values, timing)

    def nonfinite(self, step: int, values: Mapping[str, Any]) -> None:
        """Log a step whose loss or gradient was not finite, and what its batch was."""
        self._line("log", {"step": step, "kind": "nonfinite", **values})

    def evaluation(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Log scores on validation data; arguments as in `train`."""
        self._write("evaluation", step, values, timing)
        shown = {name: value for name, value in values.items() if not name.endswith("_signature")}
        self._display.say(f"Step {step:,}, validation: {_join(shown)}", folds=True)

    def final(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Log the scores of the written model; arguments as in `train`."""
        self._write("final", step, values, timing)

    def samples(self, step: int, samples: Sequence[tuple[str, str, str]], *, shows: bool) -> None:
        """Log some examples as (source, output, reference), on the terminal if `shows`."""
        for source, output, reference in samples:
            self._line("samples", {"step": step, "source": source, "output": output, "reference": reference})
        if shows:
            self.show_samples(samples)

    def show_samples(self, samples: Sequence[tuple[str, str, str]]) -> None:
        """Show some examples, given as (source, output, reference), on the terminal only."""
        for source, output, reference in samples:
            shown = "as the output" if reference == output else reference
            self.say(f"  source     {source}\n  output     {output}\n  reference  {shown}")

    def program(self, step: int, description: Sequence[str]) -> None:
        """Log a description of the compiled step, given as lines."""
        self._line("timing", {"step": step, "kind": "program", "description": "; ".join(description)})
        for line in description:
            self.detail(line)

    def detail(self, text: str) -> None:
        """Show lines above the bar, if the log is verbose."""
        if self._verbose:
            self.say(text)

    def say(self, text: str) -> None:
        """Show lines above the bar."""
        self._display.say(text)

    def say_once(self, topic: str, text: str) -> None:
        """Show lines, unless some on the same topic have been shown."""
        if topic not in self._said:
            self._said.add(topic)
            self.say(text)

    def flush(self) -> None:
        """Wait until the folder has everything logged so far; a checkpoint must not be ahead of its log."""
        self._mirror.flush()

    def close(self) -> None:
        """Close the files and release the terminal."""
        try:
            self._trackers.close()
        finally:
            self._display.close()
        for file in self._files.values():
            file.close()
        self._mirror.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        self._line("log", {"step": step, "kind": kind, **values})
        self._line("timing", {"step": step, "kind": kind, **timing})
        self._trackers.log(kind, step, {**values, **timing})
        self._mirror.push()

    def _line(self, name: str, record: Mapping[str, Any]) -> None:
        file = self._files[name]
        file.write(json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        self._mirror.push()


class SilentLog(RunLog):
    """The log of a process other than the first: nothing."""

    def __init__(self, workdir: AnyPath, **options: Any) -> None:
        """Take the arguments of `RunLog`."""

    def advance(self, step: int) -> None:
        """Do nothing."""

    def train(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Do nothing."""

    def nonfinite(self, step: int, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def evaluation(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Do nothing."""

    def final(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Do nothing."""

    def samples(self, step: int, samples: Sequence[tuple[str, str, str]], *, shows: bool) -> None:
        """Do nothing."""

    def show_samples(self, samples: Sequence[tuple[str, str, str]]) -> None:
        """Do nothing."""

    def program(self, step: int, description: Sequence[str]) -> None:
        """Do nothing."""

    def detail(self, text: str) -> None:
        """Do nothing."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def say_once(self, topic: str, text: str) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Lines:
    """Display for output that is not a terminal: a line per call."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def advance(self, step: int) -> None:
        pass

    def train(self, step: int, values: Mapping[str, Value]) -> None:
        self.say(f"Step {step:,}/{self._num_steps:,}: {_join(values)}")

    def say(self, text: str, *, folds: bool = False) -> None:
        show(text)

    def close(self) -> None:
        pass


class _Bar:
    """Display for a terminal: lines above a progress bar."""

    def __init__(self, first_step: int, num_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(file=cast(IO[str], Shown(sys.stdout))),
            expand=True,
            transient=True,
            # Few refreshes, to spare the CPU; a long period, as an evaluation may come between two steps.
            refresh_per_second=2,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=first_step, shown="")
        self._updated = -math.inf
        self._progress.start()

    def advance(self, step: int) -> None:
        # Rich remembers 1,000 updates, from which it estimates the time left.
        if time.monotonic() >= self._updated + BAR_SECONDS:
            self._updated = time.monotonic()
            self._progress.update(self._task, completed=step)

    def train(self, step: int, values: Mapping[str, Value]) -> None:
        shown = ", ".join(form.format(_short(values[name])) for name, form in SHOWN.items() if name in values)
        self._progress.update(self._task, completed=step, shown=shown)

    def say(self, text: str, *, folds: bool = False) -> None:
        from rich.text import Text

        console = self._progress.console
        if folds:  # between words; elsewhere lines stay whole, for they hold commands and paths
            text = textwrap.fill(text, console.width, subsequent_indent="  ", break_long_words=False)
        # As Text, since brackets in sentences would be markup.
        console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def _run_name(folder: AnyPath) -> str:
    """What trackers call a run: its folder, after that of the sweep if it is a trial, such as first-003."""
    is_trial = folder.parent.name == "trials" and folder.name.isdecimal()
    return f"{folder.parent.parent.name}-{folder.name}" if is_trial else folder.name


def _cut(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, and one that was being written when the run was killed."""
    if not path.exists():
        return
    content = read_file(path)
    kept = b"".join(line + b"\n" for line in content.split(b"\n") if _is_of_run(line, step))
    if kept != content:
        write_atomically(path, kept)


def _history(folder: Path) -> list[Record]:
    """The lines in `folder` that trackers get.

    Their times follow from the minutes that the run took until then, as if the last of them were of now.
    """
    log, timing = (
        [json.loads(line) for line in read_file(folder / f"{name}.jsonl").splitlines()] for name in ("log", "timing")
    )
    timings = {(line["step"], line.get("kind")): line for line in timing}
    lines = [timings.get((line["step"], line["kind"]), {}) | line for line in log if line.get("kind") in KINDS]
    now, elapsed = time.time(), 0.0
    total = max((line.get("minutes") or 0.0 for line in lines), default=0.0)
    records = []
    for line in lines:
        elapsed = max(elapsed, line.get("minutes") or 0.0)
        values = {name: value for name, value in line.items() if name not in ("step", "kind")}
        records.append(Record.of(line["kind"], line["step"], values, now - 60 * (total - elapsed)))
    return records


def _is_of_run(line: bytes, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["step"] < step or (record["step"] == step and record.get("kind") in ("train", "nonfinite"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _join(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in values.items())


def _short(value: Value) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < 1e15 else f"{value:.4g}"
