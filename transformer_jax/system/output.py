"""Files that a person named for output."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from transformer_jax.system import UserError
from transformer_jax.system.files import as_path, is_at, os_errors, sync_folder, try_lock


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
        self._stream: BinaryIO | None = None
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
            self._stream.write(content)
            self._stream.flush()
            self.kept = self._unfinished if content and isinstance(self._unfinished, Path) else self.kept

    def _open(self) -> BinaryIO:
        if not isinstance(self._target, Path):
            return tempfile.TemporaryFile()
        if self._is_stream:
            if self._descriptor is not None:  # opened anew, a file would be written from its beginning
                return os.fdopen(os.dup(self._descriptor), "wb")
            return os.fdopen(os.open(self._target, os.O_WRONLY), "wb")
        assert isinstance(self._unfinished, Path)
        old = self._target.stat() if self._target.exists() else None
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        # Nobody may read what will be private.
        descriptor = os.open(self._unfinished, flags, 0o666 if old is None else 0o600)
        stream = os.fdopen(descriptor, "wb")
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
