"""What a command writes: files that a person named for output, and the progress of its work."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, cast

from transformer_jax.system import UserError
from transformer_jax.system.files import as_path, is_at, os_errors, sync_folder, try_lock
from transformer_jax.system.runtime import Shown, write_at_once

Report = Callable[[int], None]
"""Called while work is in progress with the number of texts finished since the last call, by any thread."""
CHUNK_BYTES = 4096
"""At most this many bytes at a time; Linux writes as many to a pipe whole or not at all."""
QUIET_SECONDS = 3.0
"""Work that takes no longer shows no progress."""
LINE_SECONDS = 5.0
"""Interval of progress lines where there is no bar."""
_FRAME_SECONDS = 0.5
_SAMPLES = 200


class Output:
    """A file that a person named for output, written bit by bit.

    What is not a regular file (a pipe, a device, `/dev/stdout`) is written to as it is. A regular file is replaced when
    all is written: until then the content lies in `NAME.partial` beside it, and stays there if the work is interrupted.
    Symbolic links are followed; mode, owner and attributes of a file that is replaced stay, as far as the system lets
    us; other hard links keep the old content. Where nothing can be created beside a file, or it cannot be renamed over,
    the finished content is copied into it.
    """

    def __init__(self, path: str) -> None:
        """Find out whether `path` can be written, and leave it as it is.

        Raises:
            UserError: if it cannot.
        """
        self._name = path
        self._stream: FileIO | None = None
        self._target = self._unfinished = as_path(path)
        self.kept: Path | None = None
        """After work that failed: the file with what was written before, if there is any."""
        with self._user_errors():
            self._is_stream = isinstance(self._target, Path) and self._check(self._target)

    def _check(self, path: Path) -> bool:
        """Whether the path is no regular file; raises an OSError if it can't be written."""
        if os.path.basename(self._name) in ("", ".", ".."):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._descriptor = _descriptor(path)
        if self._descriptor is not None:
            os.write(self._descriptor, b"")  # fails if it is closed, or open for reading only
            return True
        self._target = path = Path(os.path.realpath(path))
        if path.is_symlink():  # to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if mode is not None and stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, "it is a socket")
        if mode is not None and not stat.S_ISREG(mode):
            return True
        if not path.parent.is_dir():
            number = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
            raise OSError(number, os.strerror(number))
        try:
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError:
            if mode is None:
                raise
            # A name that nobody else can guess.
            self._unfinished = Path(tempfile.gettempdir(), f"transformer-jax-{secrets.token_hex(8)}.partial")
        else:
            name = os.fsdecode(os.fsencode(path.name)[:240])  # a name has at most 255 bytes
            self._unfinished = path.with_name(f"{name}.partial")
            _require_unused(self._unfinished)
        return False

    def write(self, content: bytes) -> None:
        """Append; when this returns, the content is in the file that `kept` will name.

        Raises:
            UserError: if that fails.
            BrokenPipeError: if nobody reads the pipe any more.
        """
        with self._user_errors():
            if self._stream is None:
                self._stream = self._open()
            write_at_once(self._stream, content)
            self.kept = self._unfinished if content and isinstance(self._unfinished, Path) else self.kept

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        if not (self._is_stream and isinstance(self._target, Path)):
            return False
        if self._descriptor is not None or not self._target.is_char_device():
            return self._descriptor is not None and os.isatty(self._descriptor)
        flags = os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK  # neither wait for it nor own it
        with contextlib.suppress(OSError), open(os.open(self._target, flags), "rb", buffering=0) as stream:
            return stream.isatty()
        return False

    def _open(self) -> FileIO:
        if not isinstance(self._target, Path):
            return tempfile.TemporaryFile(buffering=0)
        if self._is_stream:
            if self._descriptor is not None:  # reopened, a file would be written from its beginning
                return os.fdopen(os.dup(self._descriptor), "wb", buffering=0)
            return os.fdopen(os.open(self._target, os.O_WRONLY), "wb", buffering=0)
        assert isinstance(self._unfinished, Path)
        old = self._target.stat() if self._target.exists() else None
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        # Nobody may read what will be private.
        descriptor = os.open(self._unfinished, flags, 0o666 if old is None else 0o600)
        stream = os.fdopen(descriptor, "wb", buffering=0)
        try:
            _require_lock(descriptor)
            if os.fstat(descriptor).st_size or not is_at(descriptor, self._unfinished):
                # Between opening and locking, another command has written it, or renamed it to its output.
                raise OSError(errno.EBUSY, "another command has just written it")
            if old is not None:
                with contextlib.suppress(OSError):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                shutil.copystat(self._target, self._unfinished)
                os.utime(self._unfinished)
        except BaseException:
            stream.close()
            raise
        return stream

    def __enter__(self) -> "Output":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_stream:
            self.kept = None
        if error is None:
            self.write(b"")  # an empty output is a file too
            self._finish()
            self.kept = None
        elif self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            if self.kept is None and not self._is_stream and isinstance(self._unfinished, Path):
                self._unfinished.unlink(missing_ok=True)

    def _finish(self) -> None:
        assert self._stream is not None
        with self._user_errors(), self._stream as stream:
            if not isinstance(self._target, Path):
                stream.seek(0)
                with os_errors(self._target):
                    self._target.write_bytes(stream.read())
            elif not self._is_stream:
                assert isinstance(self._unfinished, Path)
                os.fsync(stream.fileno())
                _move(self._unfinished, self._target)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UserError(f"{self._name} cannot be written ({reason}); name another file.") from error


def write_output(path: str | os.PathLike[str], content: bytes) -> None:
    """Write the whole content of a file that a person named for output, see `Output`.

    Raises:
        UserError: if that fails.
    """
    with Output(os.fspath(path)) as output:
        output.write(content)


def chunks(content: bytes) -> Iterator[bytes]:
    """Split content into pieces of whole lines, at most `CHUNK_BYTES` each unless a single line is longer."""
    start = 0
    while start < len(content):
        end = content.rfind(b"\n", start, start + CHUNK_BYTES) + 1
        if len(content) - start <= CHUNK_BYTES:
            end = len(content)
        elif not end:
            end = content.find(b"\n", start) + 1 or len(content)
        yield content[start:end]
        start = end


class ProgressDisplay:
    """Shows the progress of work on standard error, once it has taken `QUIET_SECONDS`.

    A bar, above which appears what is written to `sys.stderr` meanwhile, or a line every few seconds. Speed and time
    left follow from the latter half of the time since the first result, so that loading and compiling do not distort
    them for long.
    """

    def __init__(
        self,
        kind: Literal["bar", "lines", "none"],
        doing: str,
        total: int | None,
        noun: str = "lines",
        *,
        say: Callable[[str], None],
    ) -> None:
        """Prepare a display of work that has not begun; enter it to begin.

        Args:
            kind: of display.
            doing: the work, such as "translating".
            total: of how many; None if unknown.
            noun: what is counted.
            say: shows a line.
        """
        is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
        self._kind = "lines" if kind == "bar" and is_dumb else kind
        self._doing, self._total, self._noun, self._say = doing, total, noun, say
        self._lock = threading.Lock()
        self._done, self._is_shown = 0, False
        self._began = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._first: float | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._bar if self._kind == "bar" else self._lines, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._began = time.monotonic()
        if self._kind != "none":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        if self._kind != "none":
            self._thread.join()
        if self._is_shown and error is None:
            seconds = time.monotonic() - self._began
            self._say(f"{self._done:,} {self._noun} in {_clock(seconds)}, {_number(self._done / seconds)} a second")

    def add(self, count: int) -> None:
        """Add to the number done; thread-safe."""
        with self._lock:
            self._set(self._done + count)

    def reach(self, done: int) -> None:
        """Set the number done."""
        with self._lock:
            self._set(done)

    def _set(self, done: int) -> None:
        now, samples = time.monotonic(), self._samples
        self._done = done
        self._first = first = now if self._first is None else self._first
        if len(samples) > 1 and now - samples[-2][0] < (now - first) / _SAMPLES:
            samples.pop()  # to keep few, however long it takes
        samples.append((now, done))
        while len(samples) > 2 and samples[1][0] <= (first + now) / 2:
            samples.popleft()

    def of_share(self, shares: int) -> Callable[[int], None]:
        """`add` for one of several equal shares of the work, assumed to advance at the same rate."""
        return lambda count: self.add(count * shares)

    def status(self) -> str:
        """Such as: 12,288 of 200,000 lines, 251 a second, 12:31 left."""
        now = time.monotonic()
        with self._lock:
            done, samples = self._done, [*self._samples]
        of_all = "" if self._total is None else f" of {self._total:,}"
        parts, left = [f"{done:,}{of_all} {self._noun}"], 0.0
        if len(samples) > 1 and samples[-1][0] > samples[0][0]:
            (start, before), (end, after) = samples[0], samples[-1]
            speed = max(0.0, (after - before) / (end - start))
            parts.append(f"{_number(speed)} a second")
            if self._total is not None and speed:
                left = (self._total - done) / speed - (now - end)  # counts down until the next result
        parts.append(f"{_clock(left)} left" if left > 0 else f"{_clock(now - self._began)} so far")
        return ", ".join(parts)

    def _lines(self) -> None:
        told, seconds = 0, QUIET_SECONDS
        while not self._ends.wait(seconds):
            if self._done not in (told, self._total):
                told, self._is_shown = self._done, True
                self._say(self.status())
                seconds = LINE_SECONDS

    def _bar(self) -> None:
        if self._ends.wait(QUIET_SECONDS):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._is_shown = True
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            console=Console(file=cast(IO[str], Shown(sys.stderr)), force_terminal=True),
            auto_refresh=False,
            expand=True,
            transient=True,
            redirect_stdout=False,
        )
        task = bar.add_task(self._doing, total=self._total, status=self.status())
        with bar:
            while not self._ends.wait(_FRAME_SECONDS):
                bar.update(task, completed=self._done, status=self.status(), refresh=True)


def _clock(seconds: float) -> str:
    """Such as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _number(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _require_unused(path: Path) -> None:
    """Refuse to write over what an interrupted command has left, or another one is writing."""
    if not os.path.lexists(path) or (path.is_file() and not path.is_symlink() and not path.stat().st_size):
        return
    if path.is_file():
        with path.open("rb") as stream:
            _require_lock(stream.fileno())
    raise UserError(
        f"{path} exists, perhaps with what a command wrote before it was interrupted; move it away or delete it."
    )


def _descriptor(path: Path) -> int | None:
    """The number of the open file of this process that a path such as `/dev/stdout` or `/dev/fd/63` stands for."""
    for _ in range(40):  # as many links as Linux follows
        place = f"{os.path.realpath(path.parent)}/{path.name}"
        if path.name in ("stdin", "stdout", "stderr") and place == f"/dev/{path.name}":
            return ("stdin", "stdout", "stderr").index(path.name)
        if found := re.fullmatch(rf"(?:/dev/fd|/proc/(?:self|{os.getpid()})(?:/task/\d+)?/fd)/(\d{{1,9}})", place):
            return int(found[1])
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def _require_lock(descriptor: int) -> None:
    """Keep other commands from writing the same file, as long as it is open.

    Raises:
        OSError: if another one writes it.
    """
    if not try_lock(descriptor):
        raise OSError(errno.EBUSY, "another command is writing it")


def _move(source: Path, target: Path) -> None:
    """Rename a file over another or, where that cannot be, copy its content into the other."""
    if source.parent == target.parent:
        try:
            os.replace(source, target)
            sync_folder(target.parent)
            return
        except OSError as error:  # another's file in a sticky folder, a mount point
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EBUSY) or not target.is_file():
                raise
    with source.open("rb") as content, target.open("r+b") as stream:
        shutil.copyfileobj(content, stream)
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())
    source.unlink()
