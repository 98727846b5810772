"""What a run tells: lines of JSON, TensorBoard events, a progress bar or plain lines."""

import contextlib
import json
import math
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, os_errors, write_atomically

TRIALS = 3
"""So often copying may fail at the end, before it is given up."""


class Mirror:
    """A folder to write to. If that is a remote one, what is written to a local one is copied there by a thread."""

    def __init__(self, folder: AnyPath, fetched: Sequence[str] = ()) -> None:
        """Create the folder.

        Args:
            folder: of this machine, which is used as it is, or a remote one.
            fetched: names of files that are to be gone on with.

        Raises:
            UserError: if the files can't be read.
        """
        self._remote: AnyPath | None = None
        if isinstance(folder, Path):
            self.local = folder
            self.local.mkdir(parents=True, exist_ok=True)
            return
        self.local = Path(tempfile.mkdtemp(prefix="transformer_jax-"))
        self._remote = folder
        self._copied: dict[Path, tuple[int, int]] = {}
        try:
            for name in fetched:
                with contextlib.suppress(FileNotFoundError), os_errors(folder):
                    (self.local / name).write_bytes((folder / name).read_bytes())
        except OSError as error:
            raise UserError(f"{folder} can't be read ({error.strerror}); choose another.") from error
        self._copying = threading.Lock()
        self._asked = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._copy_when_asked, name="mirror", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Have copied what has been written; returns at once. What fails is tried again the next time."""
        if self._remote is not None:
            self._asked.set()

    def flush(self) -> None:
        """Wait until what has been written is copied. What fails is tried again the next time."""
        if self._remote is not None:
            self._copy()

    def close(self) -> None:
        """Wait until everything is copied.

        Raises:
            UserError: if it can't be; the local files stay.
        """
        if self._remote is None or self._ends:
            return
        self._ends = True
        self._asked.set()
        self._thread.join()
        for _ in range(TRIALS):
            failure = self._copy()
            if failure is None:
                shutil.rmtree(self.local, ignore_errors=True)
                return
        assert failure is not None
        raise UserError(f"{self._remote} can't be written ({failure.strerror}); copy the files of {self.local} there.")

    def _copy_when_asked(self) -> None:
        while not self._ends:
            self._asked.wait()
            self._asked.clear()
            if not self._ends:
                self._copy()

    def _copy(self) -> OSError | None:
        """Copy the files that are not as they were when they were copied last; returns what went wrong."""
        assert self._remote is not None
        with self._copying:
            failure = None
            for path in sorted(self.local.rglob("*")):
                status = path.stat()
                written = status.st_size, status.st_mtime_ns
                if not path.is_file() or self._copied.get(path) == written:
                    continue
                try:
                    write_atomically(self._remote / path.relative_to(self.local).as_posix(), path.read_bytes())
                    self._copied[path] = written
                except OSError as error:
                    failure = error
        return failure


Value = float | int | str | None

_FILES = ("log", "timing", "samples")
SHOWN = ("loss", "tokens_per_second")
"""What the bar shows of the values; plain lines show all."""


class RunLog:
    """The log of one run, as files in its folder and on the terminal.

    `log.jsonl` holds what is the same each time the run is made, `timing.jsonl` what is not, `samples.jsonl` outputs,
    and `tensorboard/` the curves of both. In remote folders they come a little later, see `Mirror`.
    """

    def __init__(self, workdir: AnyPath, *, first_step: int, num_steps: int) -> None:
        """Open the log of a run that has made `first_step` of `num_steps` steps.

        Lines of later steps, left by a run that was killed after its last checkpoint, are cut off, and so is the
        evaluation at `first_step`: they come again.
        Infinity and NaN are written as null.
        """
        self._mirror = Mirror(workdir, [f"{name}.jsonl" for name in _FILES])
        self._files = {}
        for name in _FILES:
            path = self._mirror.local / f"{name}.jsonl"
            _cut(path, first_step)
            self._files[name] = path.open("a", encoding="utf-8")
        self._first_step = first_step
        self._display = _Bar(first_step, num_steps) if sys.stdout.isatty() else _Lines(num_steps)

    def train(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Log training.

        Args:
            step: updates so far.
            values: what another run of the same config gives again, such as `loss`, `lr`, `tokens`.
            timing: what it does not, such as `tokens_per_second`, `minutes`.
        """
        self._display.train(step, {**values, **timing})
        self._write("train", step, values, timing)

    def evaluation(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Log scores on validation data; arguments as in `train`."""
        self._write("evaluation", step, values, timing)
        shown = {name: value for name, value in values.items() if not name.endswith("_signature")}
        self.say(f"Step {step:,}, validation: {_join(shown)}")

    def samples(self, step: int, samples: Sequence[tuple[str, str, str]]) -> None:
        """Log (source, output, reference) of some examples."""
        for source, output, reference in samples:
            self._line("samples", {"step": step, "source": source, "output": output, "reference": reference})
            self.say(f"  source     {source}\n  output     {output}\n  reference  {reference}")

    def program(self, step: int, description: Sequence[str]) -> None:
        """Log what is known of the compiled step, a line each."""
        self._line("timing", {"step": step, "kind": "program", "description": "; ".join(description)})
        for line in description:
            self.say(line)

    def say(self, text: str) -> None:
        """Show lines above the bar."""
        self._display.say(text)

    def flush(self) -> None:
        """Wait until the folder holds what has been logged: a checkpoint must not be ahead of it."""
        self._mirror.flush()

    def close(self) -> None:
        """Close the files and leave the terminal."""
        self._display.close()
        if "_tensorboard" in vars(self):
            self._tensorboard.close()
        for file in self._files.values():
            file.close()
        self._mirror.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _tensorboard(self) -> Any:
        # It imports PyTorch where that is installed, which takes seconds that the first step need not wait for.
        from tensorboardX import SummaryWriter

        # TensorBoard hides what an earlier run wrote from this step on.
        folder = str(self._mirror.local / "tensorboard")
        return SummaryWriter(folder, purge_step=self._first_step + 1, flush_secs=10)

    def _write(self, kind: str, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        self._line("log", {"step": step, "kind": kind, **values})
        self._line("timing", {"step": step, "kind": kind, **timing})
        for name, value in {**values, **timing}.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def _line(self, name: str, record: Mapping[str, Value]) -> None:
        file = self._files[name]
        valid = {key: _valid(value) for key, value in record.items()}
        file.write(json.dumps(valid, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        self._mirror.push()


class SilentLog(RunLog):
    """Of a process that is not the first, which tells all there is to tell."""

    def __init__(self, workdir: AnyPath, *, first_step: int, num_steps: int) -> None:
        """Take what `RunLog` takes."""

    def train(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Nothing."""

    def evaluation(self, step: int, values: Mapping[str, Value], timing: Mapping[str, Value]) -> None:
        """Nothing."""

    def samples(self, step: int, samples: Sequence[tuple[str, str, str]]) -> None:
        """Nothing."""

    def program(self, step: int, description: Sequence[str]) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _Lines:
    """For output that is no terminal: a line for each call."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps

    def train(self, step: int, values: Mapping[str, Value]) -> None:
        self.say(f"Step {step:,}/{self._num_steps:,}: {_join(values)}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """For a terminal: a progress bar below what is said."""

    def __init__(self, first_step: int, num_steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(file=sys.stdout),
            expand=True,
            # The processor has better things to do, and seconds between two calls must not confuse the estimate.
            refresh_per_second=2,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("", total=num_steps, completed=first_step, shown="")
        self._progress.start()

    def train(self, step: int, values: Mapping[str, Value]) -> None:
        shown = _join({name: values[name] for name in SHOWN if name in values})
        self._progress.update(self._task, completed=step, shown=shown)

    def say(self, text: str) -> None:
        from rich.text import Text

        # As Text: sentences may hold brackets, which would be markup.
        self._progress.console.print(Text(text), soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def _cut(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and one that was being written when the run was killed."""
    if not path.exists():
        return
    content = path.read_bytes()
    kept = b"".join(line + b"\n" for line in content.split(b"\n") if _is_of_run(line, step))
    if kept != content:
        write_atomically(path, kept)


def _is_of_run(line: bytes, step: int) -> bool:
    try:
        record = json.loads(line)
        return record["step"] < step or (record["step"] == step and record.get("kind") == "train")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _valid(value: Value) -> Value:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _join(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in values.items())


def _short(value: Value) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < 1e15 else f"{value:.4g}"
