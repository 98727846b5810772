"""Atomic writes of files and folders, on this machine and in Google Cloud Storage, and files named for output."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, TypeAlias

from etils import epath

from transformer_jax.system import UserError

AnyPath: TypeAlias = Path | epath.Path

CHECKSUMS_FILE = "checksums.json"
_PIECE = 1 << 20  # bytes read at a time


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A local path, in which a leading `~` is the home folder, or one in Google Cloud Storage, gs://bucket/folder.

    Raises:
        UserError: for an empty name or other storage, or if the package for Google's is not installed.
    """
    name = os.fspath(path)
    if not name:
        raise UserError("The name of a file or folder is empty; name one.")
    scheme, separator, _ = name.partition("://")
    if not separator:
        return Path(name).expanduser() if name.startswith("~") and _has_home(name) else Path(name)
    if scheme != "gs":
        raise UserError(f"{name} is a path of an unknown kind; name a local one, or gs://BUCKET/FOLDER.")
    import fsspec

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(f"{name} needs another package; run pip install 'transformer-jax[gcs]'.") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of all that it raises
    return epath.Path(name)


def _has_home(name: str) -> bool:
    """Whether `~` or `~user`, with which a name begins, is known here; else it is a file of that name."""
    return os.path.expanduser(name) != name


def is_remote(path: AnyPath) -> bool:
    """Whether the path is in Google Cloud Storage."""
    return not isinstance(path, Path)


def resolved(path: AnyPath) -> AnyPath:
    """The path made absolute and without symbolic links, as remote ones are."""
    return path.resolve() if isinstance(path, Path) else path


@contextlib.contextmanager
def os_errors(path: AnyPath) -> Iterator[None]:
    """Turn all errors of a remote path, within the block, into what a local one raises.

    Raises:
        OSError: with a `strerror`.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the layers of the client raise errors of HTTP, credentials and their own
        if isinstance(error, OSError) and error.strerror:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(number, reason, str(path)) from error


def sha256(path: AnyPath) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces.

    Raises:
        OSError: if the file can't be read.
    """
    digest = hashlib.sha256()
    with os_errors(path), path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_checksums(folder: AnyPath, leaving_out: Collection[str] = ()) -> None:
    """Write the SHA-256 of every file below `folder` into its `checksums.json`, by relative path.

    Args:
        folder: a folder that nobody changes meanwhile.
        leaving_out: relative paths of files that will still change.

    Raises:
        OSError: if that fails.
    """
    sums = {name: sha256(folder / name) for name in _files_below(folder) if name not in (CHECKSUMS_FILE, *leaving_out)}
    write_atomically(folder / CHECKSUMS_FILE, (json.dumps(sums, indent=1) + "\n").encode())


def find_damage(folder: AnyPath) -> str | None:
    """What is wrong with the files that `write_checksums` recorded, or None; files that came later are ignored.

    Raises:
        FileNotFoundError: if there are no checksums.
    """
    try:
        with os_errors(folder):
            sums = json.loads((folder / CHECKSUMS_FILE).read_bytes())
        expected = {str(name): str(value) for name, value in sums.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError):
        return f"{CHECKSUMS_FILE} is damaged"
    for name, value in expected.items():
        try:
            if sha256(folder / name) != value:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} can't be read: {error.strerror}"
    return None


def _files_below(folder: AnyPath, prefix: str = "") -> Iterator[str]:
    """Relative names of all files, in order; not by `glob`, to which some characters of remote names are wildcards."""
    with os_errors(folder):
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _files_below(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def read_untrusted(folder: AnyPath, name: str, limit: int | None = None) -> bytes:
    """The content of a file directly in `folder`, which may come from a stranger.

    Args:
        folder: the folder; may itself be a link.
        name: of the file.
        limit: largest size in bytes; default: any.

    Raises:
        UserError: if the file is missing, a link out of the folder, not a regular file, too large or unreadable.
    """
    path = folder / name
    try:
        with os_errors(path):
            if resolved(path).parent != resolved(folder):
                raise UserError(
                    f"{path} is a link out of its folder; make a copy without links first: cp -rL {folder} COPY."
                )
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file; copy the model again from its origin.")
            with path.open("rb") as stream:
                content: bytes = stream.read(-1 if limit is None else limit + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the model again from its origin.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a readable file.") from error
    if limit is not None and len(content) > limit:
        raise UserError(f"{path} is larger than {limit:,} bytes; copy the model again from its origin.")
    return content


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: UTF-8, no name twice in an object, no NaN or infinity, no nesting beyond Python's limit.

    Raises:
        ValueError: telling what is wrong.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name occurs twice in one object")
        return values

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse, object_pairs_hook=distinct)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


_STORAGE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO),
)


def reason_of(error: BaseException) -> str:
    """Why storage failed, in the words of the system if an error of a library or one of its causes has them."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    texts = " ".join(str(cause) for cause in causes)
    known = next((os.strerror(number) for number in _STORAGE_ERRORS if os.strerror(number) in texts), None)
    return known or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write or replace a file, whole or not at all.

    Raises:
        OSError: if that fails; `path` is unchanged.
    """
    if not isinstance(path, Path):
        with os_errors(path):
            path.write_bytes(content)  # objects appear when they are complete
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(unfinished, content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_folder(folder: AnyPath, files: Mapping[str, bytes]) -> None:
    """Replace `folder` by one with these files.

    The old folder is renamed, then the new one; a process killed in between leaves the old one in a hidden folder
    beside it. Remote storage cannot rename folders: there the files are replaced one by one, in the order given.

    Raises:
        OSError: if that fails; a local `folder` is unchanged.
    """
    if not isinstance(folder, Path):
        _replace_files(folder, files)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True) as name:
        new, old = Path(name) / "new", Path(name) / "old"
        new.mkdir()
        for file, content in files.items():
            _write(new / file, content)
        _sync_folder(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        _sync_folder(folder.parent)


def _replace_files(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    with os_errors(folder):
        before = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for name in before.keys() - files.keys():
            before[name].unlink()


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `path` if the block succeeds and is deleted otherwise.

    Raises:
        UserError: if `path` is empty, exists, is remote or cannot be written.
    """
    if not str(path):
        raise UserError("The folder to write has an empty name; name one that does not exist.")
    if is_remote(as_path(path)):
        raise UserError(f"{path} is not on this machine; write to a local folder, and copy it there afterwards.")
    folder = Path(os.path.expanduser(path)).absolute()
    if os.path.lexists(folder):
        raise UserError(f"{path} exists; name a folder that does not, or remove it.")
    missing = list(itertools.takewhile(lambda parent: not os.path.lexists(parent), folder.parents))
    above = (missing[-1] if missing else folder).parent
    if not os.path.isdir(above):
        raise UserError(f"{path} cannot be written, for {above} is not a folder; name another one.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}.", ignore_cleanup_errors=True
        ) as name:
            new = Path(name) / "new"
            new.mkdir()
            yield new
            _sync_folder(new)
            new.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room, or name another folder.") from error
    finally:
        with contextlib.suppress(OSError):  # not empty if the new folder is there
            for parent in missing:
                parent.rmdir()


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
        self._descriptor = _descriptor(path)
        if self._descriptor is not None:
            os.fstat(self._descriptor)
            return True
        self._target = path = Path(os.path.realpath(path))
        if path.is_symlink():  # to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if mode is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if mode is not None and not stat.S_ISREG(mode):
            return True
        if not path.parent.is_dir():
            number = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
            raise OSError(number, os.strerror(number))
        folder = path.parent
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            if mode is None:
                raise
            folder = Path(tempfile.gettempdir())
        name = os.fsdecode(os.fsencode(path.name)[:240])  # a name has at most 255 bytes
        self._unfinished = folder / f"{name}.partial"
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
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
        # Nobody may read what will be private.
        descriptor = os.open(self._unfinished, flags, 0o666 if old is None else 0o600)
        stream = os.fdopen(descriptor, "wb")
        try:
            _lock(descriptor)
            os.truncate(descriptor, 0)
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


def _lock(descriptor: int) -> None:
    """Keep other commands from writing the same file, as long as it is open.

    Raises:
        OSError: if another one writes it.
    """
    if os.name == "posix":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(errno.EBUSY, "another command is writing it") from error
        except OSError:  # a disk without locks
            return


def _move(source: Path, target: Path) -> None:
    """Rename a file over another or, where that cannot be, copy its content into the other."""
    if source.parent == target.parent:
        try:
            os.replace(source, target)
            _sync_folder(target.parent)
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


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
