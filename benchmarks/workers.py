"""Measuring in turn: each subject lives in a process of its own and sleeps while another is measured.

XLA's flags, allocators and the thread pools of OpenMP would otherwise meet in one process.
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
"""The packages of peers."""
LONGEST = 900.0
"""Seconds that an answer may take."""
FAREWELL = 5.0
"""Seconds that a process has to end by itself."""
PAUSE = 0.3
"""Seconds before a measurement: threads of OpenMP spin for a while after their work, at the cost of whoever is next."""


class Worker:
    """A process that builds something to measure once, and measures it when asked.

    `factory(*args)` runs there, warm-up included, and returns a function without arguments that does the work once and
    returns its figure, a number or a dict of them. It must be importable, as it is sent there by name; a factory whose
    module not everybody can import, or should, is given as a string such as "benchmarks.ours:trainer". A factory raises
    `Unavailable`, or fails to import a package of the peers, to be left out.
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
            *args: of the factory; anything that can be pickled.
            threads: CPUs that the process may use, and threads of its libraries.
            environment: variables that are set there before the factory's module is imported.

        Raises:
            Unavailable: if the factory raised it, or lacks a package.
            RuntimeError: if the factory failed otherwise, or takes longer than `LONGEST`.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, dict(environment or {})), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.send((factory, args))
        try:
            # Of imports, building and warm-up.
            self.build_seconds: float = self._receive()
        except BaseException:
            self.close()
            raise

    def measure(self) -> Any:
        """Let it do its work once.

        Raises:
            RuntimeError: if that failed, or takes longer than `LONGEST`.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended, as `_receive` tells
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
                raise RuntimeError(f"The process that is measured gave no answer for {LONGEST:.0f} seconds.")
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join(FAREWELL)
            raise RuntimeError(f"The process that is measured ended with code {self._process.exitcode}.") from None
        if kind == "unavailable":
            raise Unavailable(value)
        if kind == "error":
            raise RuntimeError(f"The process that is measured failed:\n{value}")
        return value


@contextlib.contextmanager
def workers(
    factories: Mapping[str, tuple[Any, ...]], *, threads: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Worker]]:
    """Start a worker for each name, one after the other.

    Those that are unavailable, and peers that fail, are left out with a line on stderr.

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
    """Measure each in turn, `repeats` times over, so that a slow minute of the machine meets all alike.

    A peer that fails has no values; a line on stderr says so.

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
    """The life of a worker's process. The limits come first, and only then the imports that `recv` brings."""
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
            pipe.send(("unavailable", f'there is no package {missing.name}; pip install -e ".[bench]"'))
        else:
            pipe.send(("error", traceback.format_exc()))
    except (EOFError, KeyboardInterrupt):
        return
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def _is_of_peers(missing: ModuleNotFoundError) -> bool:
    """Whether it is a package of the peers, or one that they import."""
    importers = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(missing.__traceback__))
    return any(name.partition(".")[0] in OPTIONAL for name in (missing.name or "", *importers))
