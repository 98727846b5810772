"""Writing to disk so that nothing is ever seen half-written."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from etils import epath

from transformer_jax.errors import UserError
from transformer_jax.paths import AnyPath, as_path, is_remote, os_errors


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
