"""Paths on this machine and in Google Cloud Storage, and writing to them so that nothing is ever seen half-written."""

import contextlib
import errno
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from etils import epath

from transformer_jax.system.errors import UserError

AnyPath: TypeAlias = Path | epath.Path


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A local path, or one in Google Cloud Storage such as gs://bucket/folder.

    Raises:
        UserError: if it is in another storage, or the package for Google's is not installed.
    """
    name = os.fspath(path)
    scheme, separator, _ = name.partition("://")
    if not separator:
        return Path(name)
    if scheme != "gs":
        raise UserError(f"{name} is a path of an unknown kind; name one of this machine, or gs://BUCKET/FOLDER.")
    import fsspec

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(f"{name} needs a package more; run pip install 'transformer-jax[gcs]'.") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it shows the traceback of whatever it raises
    return epath.Path(name)


def is_remote(path: AnyPath) -> bool:
    """Whether it is none of this machine."""
    return not isinstance(path, Path)


def resolved(path: AnyPath) -> AnyPath:
    """Absolute and without symbolic links; remote ones are."""
    return path.resolve() if isinstance(path, Path) else path


@contextlib.contextmanager
def os_errors(path: AnyPath) -> Iterator[None]:
    """Within, whatever goes wrong with a remote path is an `OSError` with a `strerror`, as it is with a local one.

    Raises:
        OSError: of that kind.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except UserError:
        raise
    # The storage's client raises what its many layers do: of HTTP, of credentials, of its own.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        raise OSError(number, reason, str(path)) from error


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file, or replace it, whole or not at all.

    Raises:
        OSError: if that fails; `path` is as it was before.
    """
    if not isinstance(path, Path):
        with os_errors(path):
            path.write_bytes(content)  # object storage shows an object when it is complete
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write(unfinished, content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_folder(folder: AnyPath, files: Mapping[str, bytes]) -> None:
    """Put a folder with these files in the place of `folder`.

    The old one makes way by a rename, and the new one takes its place by another. A process killed between the two
    leaves the old one in a hidden folder beside. Remote storage renames no folders: there the files are replaced one by
    one, in the order given.

    Raises:
        OSError: if that fails; `folder` is as it was before, unless it is remote.
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


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error; otherwise nothing is left.

    Raises:
        UserError: if `path` is empty, exists, or cannot be written.
    """
    if not str(path):
        raise UserError("The folder to write is an empty text; name one that does not exist.")
    if is_remote(as_path(path)):
        raise UserError(f"{path} is not on this machine; name a local folder, and copy it there afterwards.")
    folder = Path(path).absolute()
    if os.path.lexists(folder):
        raise UserError(f"{path} exists; name a folder that does not, or remove it.")
    missing = list(itertools.takewhile(lambda parent: not os.path.lexists(parent), folder.parents))
    above = (missing[-1] if missing else folder).parent
    if not os.path.isdir(above):
        raise UserError(f"{path} cannot be written, for {above} is no folder; name another folder.")
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
        with contextlib.suppress(OSError):  # they are not empty once the new folder is there
            for parent in missing:
                parent.rmdir()


def _replace_files(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    with os_errors(folder):
        before = {path.name: path for path in folder.iterdir()} if folder.exists() else {}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for name in before.keys() - files.keys():
            before[name].unlink()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
