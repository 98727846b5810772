"""One owner of a folder at a time, on shared disks and in buckets too."""

import contextlib
import itertools
import json
import os
import secrets
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_jax.system import ResumableError, UserError
from transformer_jax.system.files import AnyPath, is_at, os_errors, read_json, try_lock, write_atomically
from transformer_jax.system.runtime import show_error

OWNER_FILE = "owner.json"
BEAT_SECONDS = 10.0
"""Time between two signs of life of an owner."""
DEAD_SECONDS = 60.0
"""An owner on another machine that gives none for so long is taken for dead."""
SETTLING_SECONDS = 0.2
"""After this, a file that two machines replaced at once has its final content; ten times as long in buckets."""


class InUseError(ResumableError):
    """Another program owns a folder."""


class Ownership:
    """The right to write into a folder, which one program has at a time.

    The owner keeps a file `owner.json` in the folder and rewrites it every `BEAT_SECONDS`. Another program takes over
    at once if the owner ran on this machine and is gone; if it ran elsewhere, once the file has not changed for
    `DEAD_SECONDS` by the clock of the waiting program alone. Of several programs that would
    take over at once, a lock lets one through. Some network file systems and all buckets have no locks: there, whoever
    takes over reads back what it wrote. An owner that was only slow, or suspended, finds out by `check`.
    """

    def __init__(self, folder: AnyPath) -> None:
        """Owns nothing yet."""
        self._folder, self._path = folder, folder / OWNER_FILE
        self._made: list[Path] = []
        self._beats = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._identity = identity() | {"token": secrets.token_hex(8)}

    def acquire(self) -> None:
        """Become the owner; creates the folder. Waits while it is unclear whether the present owner is alive.

        Raises:
            InUseError: if another program is the owner.
            UserError: if `owner.json` is not a regular file.
            OSError: if the folder can't be written.
        """
        if isinstance(self._folder, Path):
            missing = itertools.takewhile(lambda parent: not parent.exists(), (self._folder, *self._folder.parents))
            self._made = list(missing)
            self._folder.mkdir(parents=True, exist_ok=True)
        _held.add(str(self._identity["token"]))  # before anybody can read it
        while not self._create():
            if isinstance(self._path, Path) and _is_irregular(self._path):
                raise UserError(f"{self._path} is a link or not a file; delete it.")
            if not self._replace(self._watch()):
                continue
            time.sleep(SETTLING_SECONDS if isinstance(self._folder, Path) else 10 * SETTLING_SECONDS)
            if self._is_mine(self._read()):
                break
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Require that the folder, if this has acquired it, still belongs to this.

        Raises:
            InUseError: if it belongs to another program.
            ResumableError: if it is gone.
        """
        if self._thread is None:
            return
        try:
            owner = self._read()
            if owner is None and not self._create():  # somebody has deleted the file
                owner = self._read()
        except OSError as error:
            raise ResumableError(
                f"{self._folder} can't be written any more ({error.strerror}); rerun the command."
            ) from error
        if owner is not None and not self._is_mine(owner):
            raise InUseError(f"{self._folder} was taken over by {_named(owner)}; stop that, or choose another folder.")

    def release(self) -> None:
        """Give the folder back; one that `acquire` created, and nobody filled, is removed."""
        self._stopped.set()
        if self._thread is not None and self._identity["pid"] == os.getpid():  # not in a forked process
            self._thread.join()
            self._thread = None
            with contextlib.suppress(OSError), self._locked() as is_locked:
                if is_locked and self._is_mine(self._read()):
                    with os_errors(self._folder):
                        self._path.unlink()
        _held.discard(str(self._identity["token"]))
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _create(self) -> bool:
        """Write the file unless there is one."""
        if not isinstance(self._path, Path):
            if self._read() is not None:
                return False
            self._write()
            time.sleep(10 * SETTLING_SECONDS)
            return self._is_mine(self._read())
        try:
            with self._path.open("xb") as stream:
                try:
                    stream.write(self._content())
                    stream.flush()
                except OSError:  # the disk is full
                    self._path.unlink()
                    raise
        except FileExistsError:
            return False
        return True

    def _watch(self) -> dict[str, Any] | None:
        """Wait until the present owner is gone; returns what its file says, None if there is none."""
        first, deadline = self._read(), time.monotonic() + DEAD_SECONDS
        is_announced = False
        while (owner := self._read()) is not None:
            alive = is_alive(owner)
            if alive is None and owner != first and first:
                alive = True
            if alive:
                raise InUseError(
                    f"{self._folder} is in use by {_named(owner)}; wait for its end, stop it, or choose another folder."
                )
            if alive is False or time.monotonic() > deadline:
                break
            first = first or owner
            if not is_announced:
                show_error(
                    f"{self._folder} may be in use by {_named(owner)}; waiting at most {DEAD_SECONDS:.0f} s to see"
                )
                is_announced = True
            time.sleep(min(1.0, DEAD_SECONDS / 4))
        return owner

    def _replace(self, expected: dict[str, Any] | None) -> bool:
        """Write the file if it still says `expected`; of several programs that call this at once, one does."""
        if expected is None:
            return False  # to be created
        with self._locked() as is_locked:
            if not is_locked or self._read() != expected:
                return False
            self._write()
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """A context that locks the file against others that would replace or delete it.

        Yields:
            Whether it is locked, or its disk has no locks. It is not if another program locks or has just replaced it.
        """
        if not isinstance(self._path, Path) or os.name != "posix":
            yield True
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except FileNotFoundError:
            yield False
            return
        try:
            # The file is replaced by renaming, so that a lock may be on one that is gone.
            yield try_lock(descriptor) and is_at(descriptor, self._path)
        finally:
            os.close(descriptor)

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError), self._locked() as is_locked:  # tried again; `check` reports it
                if is_locked and self._is_mine(self._read()):
                    self._beats += 1
                    self._write()

    def _is_mine(self, owner: dict[str, Any] | None) -> bool:
        return owner is not None and owner.get("token") == self._identity["token"]

    def _content(self) -> bytes:
        return (json.dumps({**self._identity, "beats": self._beats}, indent=1) + "\n").encode()

    def _write(self) -> None:
        write_atomically(self._path, self._content())

    def _read(self) -> dict[str, Any] | None:
        """What the file says: None if there is none, and empty if it is unreadable, as while it is being written."""
        try:
            owner = read_json(self._path)
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}


def identity() -> dict[str, Any]:
    """What distinguishes this process from all others, for `is_alive`."""
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def owner_of(folder: AnyPath) -> dict[str, Any] | None:
    """What the owner of a folder last wrote, for `is_alive`; None if it has none.

    Raises:
        OSError: if the folder can't be read.
    """
    return Ownership(folder)._read()


def has_live_owner(folder: AnyPath) -> bool:
    """Whether a running program owns the folder. Writes nothing and does not wait.

    An owner on another machine counts as running if it has given a sign of life in the last `DEAD_SECONDS`, by the
    clocks of this machine and of the disk. What cannot be read belongs to nobody.
    """
    path = folder / OWNER_FILE
    try:
        owner = owner_of(folder)
        with os_errors(folder):
            # A remote `stat` has another form, and 0 if the storage does not know.
            written = path.stat().st_mtime if isinstance(path, Path) else path.stat().mtime
    except OSError:
        return False
    alive = is_alive(owner) if owner is not None else False
    return time.time() - written < DEAD_SECONDS if alive is None else alive


_held: set[str] = set()
"""Tokens of the owners in this process."""


def _is_irregular(path: Path) -> bool:
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:  # the owner has just released it
        return False


def _named(owner: Mapping[str, Any]) -> str:
    if "pid" not in owner:
        return "another program"
    return f"process {owner['pid']} on {owner.get('host')}, since {owner.get('since')}"


def is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Whether a process, given as its `identity`, runs; None if it may be on another machine."""
    if owner.get("machine") != _machine() or not isinstance(owner.get("pid"), int):
        return None
    if "token" in owner and owner["pid"] == os.getpid():
        return owner["token"] in _held
    return _start_of(owner["pid"]) is not None and _start_of(owner["pid"]) == owner.get("started")


def _machine() -> str:
    """What distinguishes machines, boots of one, and containers with process ids of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, so that a later one of the same id is known; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
