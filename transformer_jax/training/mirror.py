"""A folder that a run writes to while it trains, on this machine or in Google Cloud Storage."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, os_errors, write_atomically

TRIALS = 3
"""Attempts to copy the last files before giving up."""


class Mirror:
    """A folder to write to. For a remote folder, a local one stands in, which a thread copies to the remote one."""

    def __init__(self, folder: AnyPath, fetched: Sequence[str] = ()) -> None:
        """Create the folder.

        Args:
            folder: a local folder, used directly, or a remote one.
            fetched: names of files to continue; copied from the remote folder if they exist.

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
        self._requested = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._copy_on_request, name="mirror", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Start copying what has been written, without waiting. Failures are retried the next time."""
        if self._remote is not None:
            self._requested.set()

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file, whole or not at all, and wait until the folder has it.

        Raises:
            OSError: if that fails.
        """
        if self._remote is None:
            write_atomically(self.local / name, content)
            return
        with self._copying:  # a temporary file beside it would be copied too
            write_atomically(self._remote / name, content)
            (self.local / name).write_bytes(content)

    def remove(self, pattern: str) -> None:
        """Remove the files that match, such as `events/*`; those that can't be removed stay."""
        for folder in (self.local, self._remote):
            with contextlib.suppress(OSError):
                if folder is not None:
                    _unlink(folder, pattern)

    def flush(self) -> None:
        """Copy what has been written, and wait for it. Failures are retried the next time."""
        if self._remote is not None:
            self._copy()

    def close(self) -> None:
        """Copy everything, and wait for it.

        Raises:
            UserError: if that fails; the local files stay.
        """
        if self._remote is None or self._ends:
            return
        self._ends = True
        self._requested.set()
        self._thread.join()
        for _ in range(TRIALS):
            failure = self._copy()
            if failure is None:
                shutil.rmtree(self.local, ignore_errors=True)
                return
        assert failure is not None
        raise UserError(f"{self._remote} can't be written ({failure.strerror}); copy the files of {self.local} there.")

    def _copy_on_request(self) -> None:
        while not self._ends:
            self._requested.wait()
            self._requested.clear()
            if not self._ends:
                self._copy()

    def _copy(self) -> OSError | None:
        """Copy the files that have changed since they were last copied; returns the last error, if any."""
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


def _unlink(folder: AnyPath, pattern: str) -> None:
    with os_errors(folder):
        for path in folder.glob(pattern):
            path.unlink()
