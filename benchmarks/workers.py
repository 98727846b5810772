"""Alternating measurements: each subject has its own process and sleeps while another is measured.

In one process, XLA's flags, allocators and the thread pools of OpenMP would interfere.
"""

import contextlib
import multiprocessing
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.results import is_peer
from benchmarks.settings import Unavailable

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
OPTIONAL = ("torch", "transformers", "ctranslate2")
"""Packages of peers."""
LONGEST = 900.0
"""Timeout of an answer, in seconds."""
FAREWELL = 5.0
"""Seconds that a process has to exit before it is killed."""
PAUSE = 0.3
"""Seconds before a measurement: threads of OpenMP spin for a while after their work and would slow the next process."""


class Worker:
    """A process that builds a subject once, and measures it on request.

    `factory(*args)` runs there, including the warm-up, and returns a function without arguments that does the work once
    and returns its figures. The factory is sent by name, so it must be importable; to import its module only there,
    pass a string such as "benchmarks.ours:trainer". If it raises `Unavailable`, or cannot import a package of the
    peers, the subject is left out.
    """

    def __init__(
        self,
        factory: Callable[..., Callable[[], Any]] | str,
        *args: Any,
        threads: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process, and wait until it is ready to measure.

        Args:
            factory: see above.
            *args: of the factory; must be picklable.
            threads: CPUs that the process may use, and threads of its libraries.
            environment: variables set there before the factory's module is imported.

        Raises:
            Unavailable: if the factory raised it, or lacks a package of a peer.
            RuntimeError: if the factory failed otherwise, or took longer than `LONGEST`.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, dict(environment or {})), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.send((factory, args))
        try:
            # Imports, building and warm-up.
            self.build_seconds: float = self._receive()
        except BaseException:
            self.close()
            raise

    def measure(self) -> Any:
        """Do the work once; return its figures.

        Raises:
            RuntimeError: if it failed, or took longer than `LONGEST`.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended; `_receive` raises
            self._pipe.send("measure")
        return self._receive()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        self._process.join(FAREWELL)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        try:
            if not self._pipe.poll(LONGEST):
                raise RuntimeError(f"The measured process gave no answer for {LONGEST:.0f} seconds.")
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(FAREWELL)
            raise RuntimeError(f"The measured process ended with code {self._process.exitcode}.") from None
        if kind == "unavailable":
            raise Unavailable(value)
        if kind == "error":
            raise RuntimeError(f"The measured process failed:\n{value}")
        return value


@contextlib.contextmanager
def workers(
    factories: Mapping[str, tuple[Any, ...]], *, threads: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Worker]]:
    """Start a worker for each name, in turn.

    Unavailable subjects and failing peers are left out, with a line on stderr.

    Args:
        factories: by name, the factory and its arguments.
        threads: see `Worker`.
        environment: see `Worker`.

    Raises:
        RuntimeError: if one of ours fails.
    """
    with contextlib.ExitStack() as stack:
        started = {}
        for name, (factory, *args) in factories.items():
            try:
                worker = Worker(factory, *args, threads=threads, environment=environment)
            except (Unavailable, RuntimeError) as reason:
                if not (isinstance(reason, Unavailable) or is_peer(name)):
                    raise
                _leave_out(name, reason)
                continue
            started[name] = stack.enter_context(worker)
            print(f"{name} is ready after {worker.build_seconds:.1f} s", file=sys.stderr, flush=True)
        yield started


def alternate(measured: Mapping[str, Worker], repeats: int = 5) -> dict[str, list[Any]]:
    """Measure each in turn, `repeats` times, so that a slow minute of the machine affects all equally.

    A failing peer is left out, with a line on stderr.

    Raises:
        RuntimeError: if one of ours fails.
    """
    values: dict[str, list[Any]] = {name: [] for name in measured}
    for _ in range(repeats):
        for name in list(values):
            time.sleep(PAUSE)
            try:
                values[name].append(measured[name].measure())
            except (Unavailable, RuntimeError) as reason:
                if not is_peer(name):
                    raise
                _leave_out(name, reason)
                measured[name].close()
                del values[name]
    return values


def _leave_out(name: str, reason: Exception) -> None:
    print(f"{name} is left out: {str(reason).strip().splitlines()[-1]}", file=sys.stderr, flush=True)


def _serve(pipe: Connection, threads: int, environment: dict[str, str]) -> None:
    """Main function of a worker's process. It sets limits before `recv`, which imports the factory's module."""
    started = time.perf_counter()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)) | environment)
    try:
        factory, args = pipe.recv()
        measure = (pkgutil.resolve_name(factory) if isinstance(factory, str) else factory)(*args)
        pipe.send(("value", time.perf_counter() - started))
        while pipe.recv() is not None:
            pipe.send(("value", measure()))
    except Unavailable as reason:
        pipe.send(("unavailable", str(reason)))
    except ModuleNotFoundError as missing:
        if _is_of_peers(missing):
            pipe.send(("unavailable", f'package {missing.name} is not installed; pip install -e ".[bench]"'))
        else:
            pipe.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _is_of_peers(missing: ModuleNotFoundError) -> bool:
    """Whether a peer's package, or one that it imports, is missing."""
    importers = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(missing.__traceback__))
    return any(name.partition(".")[0] in OPTIONAL for name in (missing.name or "", *importers))
