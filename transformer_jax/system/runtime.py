"""Settings of a program made before JAX starts: the allocator and the cache of compiled programs.

Programs call `prepare` once, as `train.py` and the command line do. Importing the library changes nothing.
"""

import contextlib
import ctypes
import importlib.util
import os
import platform
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

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
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(_MALLOC_VARIABLES) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(number, value) == 1 for number, value in _MALLOC_PARAMETERS.values())
