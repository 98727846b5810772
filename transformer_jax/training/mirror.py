"""A local folder in the place of a remote one, for files that grow: remote storage is slow and can't append."""

import contextlib
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from transformer_jax.errors import UserError
from transformer_jax.files import write_atomically
from transformer_jax.paths import AnyPath, os_errors

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
