"""Paths on this machine (`pathlib`) and in Google Cloud Storage (`etils.epath`), by which both are read and written."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from etils import epath

from transformer_jax.errors import UserError

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
