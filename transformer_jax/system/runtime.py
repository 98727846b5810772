"""What a program settles before JAX starts: XLA flags, how memory is allocated, where compiled programs are kept.

Programs call `prepare` once, as `train.py` and the command line do. Importing the library changes nothing.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

XLA_FLAGS: dict[str, tuple[str, ...]] = {"cpu": (), "cuda": (), "tpu": ()}
"""By platform. None that was tried on a CPU gained more than noise, and what has not been tried is not here."""

CACHE_BYTES = 2 << 30
"""Compiled programs that were not used for longest are deleted beyond this."""

_MALLOC_PARAMETERS = {
    # XLA takes the temporary memory of a step in one piece. From its main arena glibc can give the same pages each
    # time; from others, and above its thresholds, it asks for new ones, at the cost of a page fault for every 4 KiB.
    # The first is refused by older versions of glibc, and without it the others would only cost.
    "M_MMAP_THRESHOLD": (-3, 1 << 30),
    "M_ARENA_MAX": (-8, 1),
    "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1),
}
"""Of glibc's `mallopt`: number and value."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MALLOC_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")


def prepare() -> list[str]:
    """Choose what is not chosen yet, for this process and those that it starts. To be called before JAX computes.

    `XLA_FLAGS`, `JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE` and glibc's `MALLOC_` variables have
    precedence. Compiled programs are kept in `~/.cache/transformer_jax/compiled` (or below `XDG_CACHE_HOME`) if nobody
    else can write there: who can, could run code as this user.

    Returns:
        What is in force, a line each.
    """
    chosen_for = _platform()
    lines = [_add_xla_flags(chosen_for), _keep_compiled()]
    if chosen_for == "cpu" and _keep_memory():
        lines.append("Freed memory is kept for the next step")
    return lines


@dataclass
class Compilations:
    """What XLA was asked for."""

    programs: int = 0
    """Programs made ready to run, one for each function and each shape of its arguments."""
    from_disk: int = 0
    """Those of them that were found compiled."""
    seconds: float = 0.0
    """Of work: some compile at the same time."""


@contextlib.contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Counts what is compiled within, by whatever thread."""
    import jax

    counted = Compilations()

    def add_program(event: str, duration_secs: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            counted.programs += 1
            counted.seconds += duration_secs

    def add_hit(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            counted.from_disk += 1

    jax.monitoring.register_event_duration_secs_listener(add_program)
    jax.monitoring.register_event_listener(add_hit)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(add_program)
        jax.monitoring.unregister_event_listener(add_hit)


def _platform() -> str:
    """The platform that JAX is going to choose; to ask JAX itself would start it."""
    named = os.environ.get("JAX_PLATFORMS", "").partition(",")[0]
    if named:
        return "cuda" if named == "gpu" else named
    if importlib.util.find_spec("libtpu"):
        return "tpu"
    has_plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return "cuda" if has_plugin and Path("/dev/nvidiactl").exists() else "cpu"


def _add_xla_flags(chosen_for: str) -> str:
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in given}
    flags = [*given, *(flag for flag in XLA_FLAGS.get(chosen_for, ()) if flag.partition("=")[0] not in names)]
    if flags:
        os.environ["XLA_FLAGS"] = " ".join(flags)
    return f"XLA flags: {' '.join(flags) or 'none'}"


def _keep_compiled() -> str:
    """Set JAX's cache of compiled programs up; returns where it is, or why there is none."""
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
    """Options of JAX that its variables do not set."""
    for name, value in options.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            if "jax" in sys.modules:  # it reads its variables when imported
                sys.modules["jax"].config.update(name, value)


def _make_private(folder: Path) -> None:
    """Create a folder that only this user can enter, in one where nobody else can put another in its place.

    Raises:
        OSError: if it can't be made.
        RuntimeError: if it is another's, or others can write there.
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
        raise RuntimeError(f"{folder} is no folder; delete it")
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RuntimeError(f"{folder} is open to others; delete it, or name another folder in XDG_CACHE_HOME")


def _keep_memory() -> bool:
    """Tell glibc not to give memory back that the next step needs; returns whether it was told."""
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(_MALLOC_VARIABLES) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(number, value) == 1 for number, value in _MALLOC_PARAMETERS.values())
