"""How processes meet, and how they end: together, each with one message and one exit status.

A process that fails does not wait for the others, which may be inside a collective: it leaves a farewell in the
key-value store and exits. A thread of every process watches for it. JAX aborts those that lose a peer without farewell.
"""

import atexit
import contextlib
import ctypes
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from transformer_jax.system import UserError
from transformer_jax.system.distributed import exchange
from transformer_jax.system.distributed.exchange import assert_equal, is_main, process_count, process_index
from transformer_jax.system.runtime import show, show_error

COLLECTIVE_ERRORS = (jax.errors.JaxRuntimeError, TimeoutError)
"""What waiting for another process raises if that is gone, in JAX and in libraries that have barriers of their own."""
PEER_LOST = 75
"""Exit status after another process failed or was lost; the same commands resume (EX_TEMPFAIL of sysexits.h)."""
MEETING_SECONDS = 50.0
"""Time limit for all processes to meet."""
HEARTBEAT_SECONDS = 20
"""After this time without a sign of life, JAX takes a process for dead and aborts the others."""
WATCH_SECONDS = 0.5
"""Time between two looks for a farewell."""
FAREWELL_SECONDS = 5.0
"""Time limit for the others to see a farewell."""

_PACKAGES = ("transformer-jax", "jax", "jaxlib")
"""Packages whose release must be the same everywhere."""
_JOB_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_ending = threading.Lock()
_abort_handlers: list[Any] = []
"""C does not keep them alive."""


def initialize(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Meet the other processes, if any, before anything else that uses JAX.

    Options left out come from the cluster that `jax.distributed.initialize` detects (Cloud TPU, Slurm, Open MPI, ...).
    Without options and outside of clusters, this process is alone.

    Args:
        distributed: whether it is an error to find no cluster.
        coordinator: HOST:PORT of process 0.
        num_processes: number of processes; 1 for a process that is alone even in a cluster.
        process_id: index of this process, from 0.

    Raises:
        UserError: if the options contradict each other, or no cluster or no process 0 is found.
    """
    is_required = distributed or any(option is not None for option in (coordinator, num_processes, process_id))
    if num_processes == 1 or (not is_required and any(os.environ.get(name) == "1" for name in _JOB_SIZES)):
        return
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    _check_options(coordinator, num_processes, process_id)
    deadline = time.monotonic() + MEETING_SECONDS
    if coordinator and process_id == 0:
        _require_free(coordinator)
    elif coordinator and process_id:
        _await_coordinator(coordinator, deadline)
    missing = (
        f"Only some of {num_processes or 'all'} processes met{f' at {coordinator}' if coordinator else ''} within "
        f"{MEETING_SECONDS:.0f} s; start as many, with one --coordinator and --num_processes, and each with its own "
        "--process_id, or give --num_processes=1 to one that is alone."
    )
    timer = threading.Timer(deadline - time.monotonic(), _exit, (2, missing))  # before JAX aborts with a stack trace
    timer.daemon = True
    timer.start()
    if is_required:
        _exit_when_aborted(2, "A process ended before all had met, or two have one --process_id; restart them all.")
    try:
        has_met = _connect(is_required, coordinator, num_processes, process_id)
        if has_met and num_processes is not None and process_id is not None:
            _require_same_count(num_processes, process_id)
    finally:
        timer.cancel()
    if has_met and process_count() > 1:
        lost = "Another process was lost (killed, or by the network), which ends all; the same commands resume."
        _exit_when_aborted(PEER_LOST, lost)
        _watch_others()
        with exit_together():
            assert_equal({name: _release(name) for name in _PACKAGES})
    elif is_required:
        _set_abort_handler(None)  # a cluster of one


def _check_options(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(f"--coordinator is {coordinator!r}, but must be HOST:PORT, such as 10.0.0.1:1234.")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}, but must be at least 1.")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        limit = "" if num_processes is None else f" to {num_processes - 1}, one less than --num_processes"
        raise UserError(f"--process_id is {process_id}, but must lie in 0{limit or ' or more'}.")


def _require_free(coordinator: str) -> None:
    """Refuse a port in use, which gRPC would share with another run."""
    port = int(coordinator.rpartition(":")[2])
    try:
        probe = socket.socket(socket.AF_INET6)
    except OSError:  # a kernel without IPv6
        probe = socket.socket(socket.AF_INET)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"Process 0 cannot listen at port {port} ({error.strerror}); choose another in --coordinator."
            ) from error


def _await_coordinator(coordinator: str, deadline: float) -> None:
    host, _, port = coordinator.rpartition(":")
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline - 5:
                raise UserError(
                    f"No process 0 answers at {coordinator} ({error.strerror or error}); start it there, with that "
                    "--coordinator, within a minute of the others."
                ) from error
        time.sleep(0.2)


def _connect(is_required: bool, coordinator: str | None, num_processes: int | None, process_id: int | None) -> bool:
    """Start JAX's coordinator, in process 0, and connect to it; returns whether there is one."""
    if hasattr(jax.config, "jax_enable_preemption_service"):  # since jax 0.8
        jax.config.update("jax_enable_preemption_service", False)  # SIGTERM belongs to the training loop
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=round(2 * MEETING_SECONDS),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"Process 0 cannot listen ({error}); choose another port in --coordinator.") from error
    except Exception as error:  # of any kind: detection may ask servers that do not answer
        if is_required:
            raise UserError(
                f"No cluster was found ({error}); give --coordinator HOST:PORT, --num_processes N and --process_id I "
                "to each process."
            ) from error
        return False
    return True


def _require_same_count(num_processes: int, process_id: int) -> None:
    """Compare `--num_processes` before XLA waits for processes that nobody starts."""
    exchange.put(f"num_processes/{process_id}", str(num_processes))
    while len(found := exchange.get_all("num_processes")) < num_processes:
        if len(set(found.values())) > 1:
            break
        time.sleep(0.05)
    for other, value in sorted(found.items()):
        if value != str(num_processes):
            raise UserError(
                f"--num_processes is {value} at process {other}, but {num_processes} at process {process_id}; it must "
                "be the same everywhere."
            )


def _release(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@contextlib.contextmanager
def exit_together() -> Iterator[None]:
    """With several processes, an exception within the block ends all of them, each with a message and a status.

    The status is 2 for a `UserError` of any of them, 130 after Ctrl-C, 1 for a process that failed and `PEER_LOST` for
    the others.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if process_count() == 1:
            raise
        if isinstance(error, UserError):
            exit_all(2, str(error))
        if isinstance(error, KeyboardInterrupt):
            exit_all(130, "It was interrupted.")
        _fail(error)


@contextlib.contextmanager
def exit_if_peer_lost() -> Iterator[None]:
    """Within, an error of a collective ends this process before it closes anything that would wait for the others."""
    try:
        yield
    except COLLECTIVE_ERRORS as error:
        if process_count() > 1:
            _fail(error)
        raise


def raise_if_collective(error: Exception) -> None:
    """Raise an error again that a lost process may have caused, for `exit_if_peer_lost`, with several processes.

    For code that would take it for an error of what the processes do together, such as of the storage.
    """
    if process_count() > 1 and isinstance(error, COLLECTIVE_ERRORS):
        raise error


def exit_all(status: int, sentence: str) -> NoReturn:
    """End all processes without waiting for what they do.

    Args:
        status: exit status of this process. 0, 2 and 130 become that of the others, anything else `PEER_LOST`.
        sentence: the reason, shown by the others and, if it is an error, by this process.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # another thread is ending this process
    sentence = " ".join(sentence.split())
    shown = sentence if status in (2, PEER_LOST) else ""
    _exit_when_aborted(status, shown)  # JAX may abort while the others read the farewell
    try:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was faster
            farewell = {"process": process_index(), "status": status, "sentence": sentence}
            exchange.put("farewell/first", json.dumps(farewell))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            exchange.wait_at_barrier("farewell", FAREWELL_SECONDS)
        if is_main():
            time.sleep(WATCH_SECONDS)  # JAX aborts the others once the coordinator is gone
    finally:  # even after another Ctrl-C
        _exit(status, shown)


def _fail(error: Exception) -> NoReturn:
    """End because of an error that is not the user's."""
    if isinstance(error, COLLECTIVE_ERRORS):
        # A lost peer breaks collectives, but so do other things: give JAX time to abort this process because of it.
        time.sleep(HEARTBEAT_SECONDS + 10)
    traceback.print_exception(error)
    exit_all(1, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def _watch_others() -> None:
    """Start the thread that ends this process after the farewell of another."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(WATCH_SECONDS):
            try:
                found = exchange.get_all("farewell")
            except jax.errors.JaxRuntimeError:
                return  # the coordinator is gone: JAX aborts this process
            if found:
                _follow(**json.loads(found["first"]))

    thread = threading.Thread(target=watch, name="watch others", daemon=True)
    thread.start()

    def stop() -> None:
        stopped.set()
        thread.join()  # JAX's client must not be shut down while a thread uses it

    atexit.register(stop)  # runs before JAX's own


def _follow(process: int, status: int, sentence: str) -> None:
    if process == process_index():
        return
    if status in (0, 130) and is_main():
        show(f"Process {process}: {sentence}")
    if status in (0, 2, 130):
        exit_all(status, f"Process {process}: {sentence}")
    exit_all(
        PEER_LOST,
        sentence if status == PEER_LOST else f"Process {process} failed ({sentence}), which ends all.",
    )


def _exit_when_aborted(status: int, sentence: str) -> None:
    """Exit like this when JAX aborts the process, instead of with its stack trace alone.

    `tests/distributed/test_training.py` kills processes and asserts the status and the sentence of the others.
    """
    message = f"{_program()}: error: {sentence}\n".encode() if sentence else b""

    def handle(_: int) -> None:
        os.write(2, message)
        os._exit(status)

    _set_abort_handler(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))


def _set_abort_handler(handler: Any) -> None:
    # Not `signal.signal`, whose handlers wait for the main thread, which may be inside a collective.
    if os.name == "posix":
        _abort_handlers.append(handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


def _exit(status: int, sentence: str = "") -> NoReturn:
    """Exit without JAX's shutdown, which waits for all processes."""
    if sentence:
        show_error(f"{_program()}: error: {sentence}")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "transformer-jax" if name in ("train.py", "__main__.py") else name  # the same command, started otherwise
