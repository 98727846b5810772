"""Paths, atomic writes and checksums of files and folders, on this machine and in Google Cloud Storage."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from etils import epath

from transformer_jax.system import UserError

AnyPath: TypeAlias = Path | epath.Path

CHECKSUMS_FILE = "checksums.json"
NO_CHECKSUMS = f"{CHECKSUMS_FILE} is missing"
_PIECE = 1 << 20  # bytes read at a time
_LARGEST_SETTINGS = 64_000_000  # bytes; a run escapes what is not ASCII, and so may need twice the 16 MB of a model


def as_path(path: str | os.PathLike[str]) -> AnyPath:
    """A local path, in which a leading `~` is the home folder, or one in Google Cloud Storage, gs://bucket/folder.

    Raises:
        UserError: for a name that is blank or that no file can have, a `~user` who is unknown, for other storage, or if
            the package for Google's is not installed.
    """
    name = os.fspath(path)
    if not name.strip():
        raise UserError("The name of a file or folder is empty; name one.")
    try:
        is_possible = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        is_possible = False
    if not is_possible:
        raise UserError(f"{name!a} can't be the name of a file or folder; name another.")
    scheme, separator, _ = name.partition("://")
    if not separator:
        return _expanded(name) if name.startswith("~") else Path(name)
    if scheme != "gs":
        raise UserError(f"{name} is a path of an unknown kind; name a local one, or gs://BUCKET/FOLDER.")
    import fsspec

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(f"{name} needs another package; run pip install 'transformer-jax[gcs]'.") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the traceback of all that it raises
    return epath.Path(name)


def _expanded(name: str) -> Path:
    """The path of a name that begins with `~` or `~user`, unless there is a file or folder of that name."""
    expanded = os.path.expanduser(name)
    if expanded == name and not os.path.lexists(name.partition("/")[0]):
        raise UserError(f"{name} begins with the name of a user who is unknown here; write ./{name} if you mean that.")
    return Path(expanded)


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
    """What is wrong with a folder that `write_checksums` was called for, or None; files that came later are ignored.

    Nothing below the folder may be a link or a device, whoever made it. `NO_CHECKSUMS` if this is all.
    """
    if (name := _irregular_below(folder)) is not None:
        return f"{name} is a link or not a file"
    try:
        expected = {str(name): str(value) for name, value in read_json(folder / CHECKSUMS_FILE).items()}
    except FileNotFoundError:
        return NO_CHECKSUMS
    except (OSError, ValueError, AttributeError):
        return f"{CHECKSUMS_FILE} is damaged"
    for name, value in expected.items():
        if name.startswith("/") or ".." in name.split("/"):
            return f"{CHECKSUMS_FILE} names a file outside of its folder"
        try:
            if sha256(folder / name) != value:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} can't be read: {error.strerror}"
        except ValueError:
            return f"{CHECKSUMS_FILE} has a name that no file can have"
    return None


def _irregular_below(folder: AnyPath) -> str | None:
    """The relative name of an entry that is neither a file nor a folder itself; storage has no such entries."""
    for parent, folders, files in () if is_remote(folder) else os.walk(folder):
        for path in (os.path.join(parent, name) for name in sorted(folders + files)):
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return os.path.relpath(path, folder)
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


def read_file(path: AnyPath, limit: int | None = None) -> bytes:
    """The content of a regular file, or its first `limit` bytes; pipes and devices are not waited for.

    Raises:
        OSError: with a `strerror`, if it is not a regular file or can't be read.
    """
    with os_errors(path):
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        with path.open("rb") as stream:
            # `read` allocates what it is asked for, even if the file is smaller.
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            content: bytes = stream.read(size if limit is None else min(size, limit))
    return content


def read_json(path: AnyPath) -> Any:
    """Parse a JSON file of at most 64 MB, see `read_file` and `parse_json`.

    Raises:
        OSError: with a `strerror`, if it is not a regular file, is larger or can't be read.
        ValueError: if its content is not strict JSON.
    """
    content = read_file(path, _LARGEST_SETTINGS + 1)
    if len(content) > _LARGEST_SETTINGS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return parse_json(content)


def read_untrusted(folder: AnyPath, name: str, limit: int | None = None, *, truncate: bool = False) -> bytes:
    """The content of a file directly in `folder`, which may come from a stranger.

    Args:
        folder: the folder; may itself be a link.
        name: of the file.
        limit: largest size in bytes; default: any.
        truncate: read the first `limit` bytes of a larger file instead of refusing it.

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
            content = read_file(path, None if limit is None else limit + (not truncate))
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
        (name, count), *_ = Counter(name for name, _ in pairs).most_common(1) or [("", 1)]
        if count > 1:
            raise ValueError(f"a name occurs twice in one object: {name!r}")
        return dict(pairs)

    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse, object_pairs_hook=distinct)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write or replace a file, whole or not at all.

    Raises:
        OSError: if that fails; `path` is unchanged.
    """
    if not isinstance(path, Path):
        with os_errors(path):
            path.write_bytes(content)  # objects appear when they are complete
        return
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # pids repeat on shared disks
    try:
        _write(unfinished, content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


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
        sync_folder(new)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        sync_folder(folder.parent)


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
    folder = as_path(path)
    if not isinstance(folder, Path):
        raise UserError(f"{path} is not on this machine; write to a local folder, and copy it there afterwards.")
    folder = folder.absolute()
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
            sync_folder(new)
            new.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room, or name another folder.") from error
    finally:
        with contextlib.suppress(OSError):  # not empty if the new folder is there
            for parent in missing:
                parent.rmdir()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names of files in a local folder are on disk."""
    if os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, without waiting; whether no other program has, or its disk has no locks.

    Raises:
        OSError: if the disk fails.
    """
    if os.name != "posix":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # EBADF: network file systems lock only what is open for writing.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF):
            raise
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
