"""What a program has around it: the allocator and the cache of compiled programs, standard streams, and its end.

Programs call `prepare` once, before JAX starts, within `run_program`, as `train.py` and the command line do. Importing
the library changes nothing.
"""

import contextlib
import ctypes
import errno
import importlib.util
import io
import os
import platform
import signal
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from transformer_jax.system import UserError

CACHE_BYTES = 2 << 30
"""Size limit of the cache of compiled programs; the least recently used ones are deleted."""

_MALLOC_PARAMETERS = {
    # XLA allocates the temporary memory of a step at once. From its main arena glibc can return the same pages each
    # time; from other arenas, and above its thresholds, it maps new ones, at a page fault for every 4 KiB. Older
    # versions of glibc refuse the first parameter, without which the others would only cost.
    "M_MMAP_THRESHOLD": (-3, 1 << 30),
    "M_ARENA_MAX": (-8, 1),
    "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1),
}
"""Number and value of parameters of glibc's `mallopt`."""
_MALLOC_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def prepare() -> list[str]:
    """Apply these settings to this process and its children, before JAX computes anything.

    `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE` and glibc's `MALLOC_` variables take precedence.
    Compiled programs are cached in `~/.cache/transformer_jax/compiled` (or below `XDG_CACHE_HOME`) if nobody else can
    write there: whoever can, could run code as this user.

    Returns:
        The settings in force, one per line.
    """
    lines = [f"XLA flags: {os.environ.get('XLA_FLAGS') or 'none'}", _cache_programs()]
    if _platform() == "cpu" and _retain_memory():
        lines.append("Freed memory is kept for the next step")
    return lines


def _platform() -> str:
    """The platform that JAX will choose; asking JAX would start it."""
    named = os.environ.get("JAX_PLATFORMS", "").partition(",")[0]
    if named:
        return "cuda" if named == "gpu" else named
    if importlib.util.find_spec("libtpu"):
        return "tpu"
    has_plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "cuda" if has_plugin and Path("/dev/nvidiactl").exists() else "cpu"


def _cache_programs() -> str:
    """Set up JAX's cache of compiled programs; returns its folder, or why there is none, as a sentence."""
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false", "no", "n", "off", "f"):
        return "Compiled programs are not kept, as JAX_ENABLE_COMPILATION_CACHE says"
    # Hundreds of small programs add up too.
    options: dict[str, str | int] = {
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        _set_defaults(options)
        return f"Compiled programs are kept in {os.environ['JAX_COMPILATION_CACHE_DIR'] or 'no folder'}"
    try:
        named = Path(os.environ.get("XDG_CACHE_HOME", ""))
        root = named if named.is_absolute() else Path.home() / ".cache"
        folder = root / "transformer_jax" / "compiled"
        _make_private(folder.parent)
        _make_private(folder)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"Compiled programs are not kept: {reason}"
    options |= {"jax_compilation_cache_dir": str(folder), "jax_compilation_cache_max_size": CACHE_BYTES}
    _set_defaults(options)
    return f"Compiled programs are kept in {folder}"


def _set_defaults(options: Mapping[str, str | int]) -> None:
    """Set those options of JAX that the environment does not."""
    for name, value in options.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            if "jax" in sys.modules:  # JAX reads the environment when it is imported
                sys.modules["jax"].config.update(name, value)


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can enter, below one where nobody else can replace it.

    Raises:
        OSError: if it cannot be made.
        RuntimeError: if it belongs to another user, or others can write there.
    """
    if not hasattr(os, "getuid"):
        raise RuntimeError("this system has no permissions that would keep others out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    above = folder.parent.stat()
    others_can_rename = above.st_mode & _OTHERS_WRITE and not above.st_mode & stat.S_ISVTX
    if above.st_uid not in (0, os.getuid()) or others_can_rename:
        raise RuntimeError(f"others can write to {folder.parent}; name another folder in XDG_CACHE_HOME")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RuntimeError(f"{folder} is not a folder; delete it")
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RuntimeError(f"{folder} is open to others; delete it, or name another folder in XDG_CACHE_HOME")


def _retain_memory() -> bool:
    """Make glibc keep freed memory for the next step; returns whether it does."""
    global _is_retained
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(_MALLOC_VARIABLES) for name in os.environ):
        return False
    try:
        mallopt = _libc().mallopt
    except (OSError, AttributeError):
        return False
    _is_retained = all(mallopt(number, value) == 1 for number, value in _MALLOC_PARAMETERS.values())
    return _is_retained


_is_retained = False


def release_memory() -> None:
    """Give freed memory that `prepare` made glibc keep back to the system.

    Shapes vary in a search, unlike in training, so the kept memory would break into ever more pieces, and grow.
    """
    if _is_retained:
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.CDLL:
    """The C library; every `ctypes.CDLL` defines a class, which only the garbage collector frees."""
    return ctypes.CDLL(None)


class Shown(io.TextIOBase):
    """A stream for what is shown beside the result: it escapes what the encoding lacks, and never fails.

    A full disk, a closed stream or a reader that has gone must not end the work.
    """

    def __init__(self, stream: Any) -> None:
        """Wrap a standard stream; None if it was closed when the program began."""
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(ValueError):  # closed
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """That of the stream."""
        return super().fileno() if self._stream is None else self._stream.fileno()


def show(text: str) -> None:
    """Print a line to standard output, if that can be."""
    print(text, file=Shown(sys.stdout), flush=True)


def show_error(text: str) -> None:
    """Print text to standard error, if that can be; what it quotes cannot control the terminal."""
    print(printable(text), file=Shown(sys.stderr), flush=True)


def printable(text: str) -> str:
    """Escape as `repr` does what does not print, such as ESC or a mark that reverses the direction; not line feeds."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode("ascii") for each in text
    )


def silence_pending_writes() -> None:
    """Suppress, from now on, the output of TensorStore writes that are still pending when a save fails.

    Orbax raises the first failure and closes its asyncio loop; each of the others would print a traceback or a warning.
    """
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.*' was never awaited", RuntimeWarning)
    _hook_unraisable()


@cache  # once for a process
def _hook_unraisable() -> None:
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error, trace = unraisable.exc_value, unraisable.exc_traceback
        is_pending = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        # Python's own threads have another frame above.
        if not (is_pending and trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"):
            before(unraisable)

    sys.unraisablehook = hook


def stdout_bytes(content: bytes) -> None:
    """Write a part of the result to standard output, and flush it.

    Raises:
        UserError: if it cannot be written.
        BrokenPipeError: if nobody reads it any more.
    """
    stream = sys.stdout
    try:
        if stream is None:
            raise ValueError("closed")
        if not hasattr(stream, "buffer"):  # replaced, by `contextlib.redirect_stdout` for example
            stream.write(content.decode("utf-8"))
        else:
            stream.flush()
            write_at_once(getattr(stream.buffer, "raw", stream.buffer), content)
        stream.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(unwritable_output(error)) from error


def write_at_once(stream: Any, content: bytes) -> None:
    """Write to a stream without a buffer, by one call of the system unless that takes only a part.

    A process that is killed then leaves the content whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    rest = memoryview(content)
    while rest:
        written = stream.write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = rest[written:]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, whose number is the first argument, ends the program as Ctrl-C does: in order."""


def run_program(name: str, program: Callable[[], int], *, needs_output: bool = True) -> int:
    """Run a program to its exit status, with at most one sentence on standard error.

    Args:
        name: stands before the sentence.
        program: what to do; returns the status.
        needs_output: whether output that cannot be written is a failure.

    Returns:
        The status of `program`. 2: a `UserError`, or output that cannot be written. 141: the reader of the output has
        gone. 128 and the number of the signal: Ctrl-C, SIGTERM or SIGHUP ended it.

    Raises:
        SystemExit: if the program does, with its output written.
    """
    _occupy_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Help has Chinese characters, which not every locale has; and argparse ignores errors of unbuffered writes.
        sys.stdout.reconfigure(errors="backslashreplace", write_through=False)
    leaves: SystemExit | None = None
    sentence = ""
    try:
        with _terminated_by(signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            status = program()
    except SystemExit as error:
        leaves, status = error, error.code if isinstance(error.code, int) else 0
    except UserError as error:
        status, sentence = 2, _with_notes(f"error: {error}", error)
    except BrokenPipeError:
        status = 141
    except KeyboardInterrupt as error:
        number = signal.Signals(error.args[0]) if isinstance(error, Terminated) else signal.SIGINT
        reason = number.name if isinstance(error, Terminated) else "Ctrl-C"
        status, sentence = 128 + number, _with_notes(f"stopped by {reason}.", error)
    unwritten = _settle(sys.stdout)
    if unwritten is not None and needs_output and status == 0:
        leaves = None
        if isinstance(unwritten, BrokenPipeError):
            status = 141
        else:
            status, sentence = 2, f"error: {unwritable_output(unwritten)}"
    if sentence:
        show_error(f"{name}: {' '.join(sentence.split())}")
    _settle(sys.stderr)
    if leaves is not None:
        raise leaves
    return status


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


def unwritable_output(error: OSError | ValueError) -> str:
    """The sentence about standard output that cannot be written."""
    reason = getattr(error, "strerror", None) or "it is closed"
    return f"Standard output cannot be written ({reason}); direct it to a file with room, or name one by --output."


def _with_notes(sentence: str, error: BaseException) -> str:
    return " ".join([sentence, *getattr(error, "__notes__", ())])


def _occupy_standard_streams() -> None:
    """Let no file get the number of a standard stream that is closed: libraries in C would write to it."""
    with contextlib.suppress(OSError):
        while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(opened, True)
        os.close(opened)


def _settle(stream: Any) -> OSError | ValueError | None:
    """Write what a standard stream still holds; returns the error if that fails, and then drops it.

    The interpreter would try again as it ends, and report the failure.
    """
    if stream is None:
        return None
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
            stream.flush()
        return error
    return None


@contextlib.contextmanager
def _terminated_by(*numbers: int | None) -> Iterator[None]:
    """Within, these signals raise `Terminated`, unless somebody handles or ignores them."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    taken = []
    try:
        for number in numbers:
            with contextlib.suppress(ValueError):  # not the main thread
                if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, handle)
                    taken.append(number)
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is handle:
                signal.signal(number, signal.SIG_DFL)
