"""How processes end: together, each with a message and a status."""

import atexit
import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from transformer_jax.system.distributed import store
from transformer_jax.system.distributed.store import count, index, is_first
from transformer_jax.system.errors import UserError

GONE = 75
"""Exit status where another process has gone: the same commands go on (EX_TEMPFAIL of sysexits.h)."""
FAREWELL_SECONDS = 5.0
"""A process that ends by an error waits at most so long for others to hear of it."""

LONGEST_PAUSE = 0.5
"""Seconds until a process hears that another leaves."""

_IS_OF_OTHERS = re.compile(r"gloo|nccl|coordination ?service|heartbeat|connection (closed|reset)|socket closed", re.I)
"""What JAX's errors say when a process is not there to take its part in a computation."""
_leaving = threading.Lock()
_handlers: list[Any] = []
"""Of SIGABRT: C does not keep them alive."""


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """With several processes, what ends one within by an exception ends all, each with a message and a status.

    The status is 2 for a `UserError` of any of them, 130 after Ctrl-C, 1 for the process that failed and `GONE` for the
    others.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if count() == 1:
            raise
        if isinstance(error, UserError):
            leave(2, str(error))
        if isinstance(error, KeyboardInterrupt):
            leave(130, "It was interrupted.")
        _leave_if_of_others(error)
        traceback.print_exc()
        leave(1, _summary(error))


@contextlib.contextmanager
def not_waiting_for_the_lost() -> Iterator[None]:
    """Within, the loss of another process ends this one before anything around is closed, which would wait for it."""
    try:
        yield
    except Exception as error:
        if count() > 1:
            _leave_if_of_others(error)
        raise


def leave(status: int, sentence: str) -> NoReturn:
    """End this process, and by that all others, without waiting for what they are at.

    Args:
        status: 0 and 2 are the others' too, and so is 130; anything else is `GONE` there.
        sentence: why; shown here, and by the others.
    """
    if not _leaving.acquire(blocking=False):
        threading.Event().wait()  # another thread is at it
    sentence = " ".join(sentence.split())
    shown = sentence if status in (2, GONE) else ""
    end_well_when_aborted(shown, status=status)  # which may happen while the others are told
    try:
        _bid_farewell({"process": index(), "status": status, "sentence": sentence})
    finally:  # even if Ctrl-C comes once more
        end_at_once(status, f"{program()}: error: {shown}" if shown else "")


def _leave_if_of_others(error: BaseException) -> None:
    if not isinstance(error, UserError) and _IS_OF_OTHERS.search(str(error)):
        leave(GONE, gone(_summary(error)))


def _summary(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def watch_others() -> None:
    """Have a thread end this process when another tells that it leaves."""
    ends = threading.Event()

    def watch() -> None:
        while not ends.wait(LONGEST_PAUSE):
            try:
                told = store.find("farewell")
            except jax.errors.JaxRuntimeError:
                return  # the first process has gone, of which JAX tells by another way
            if told is not None:
                _follow(json.loads(told))

    thread = threading.Thread(target=watch, name="watch others", daemon=True)
    thread.start()

    def end() -> None:
        ends.set()
        thread.join()  # a thread within JAX's client would not survive that it is shut down

    atexit.register(end)  # called before what JAX registered


def _follow(farewell: dict[str, Any]) -> NoReturn:
    process, status, sentence = farewell["process"], farewell["status"], farewell["sentence"]
    if process == index():
        threading.Event().wait()
    if status in (0, 130) and is_first():
        print(f"Process {process}: {sentence}", flush=True)
    if status in (0, 2, 130):
        leave(status, f"Process {process}: {sentence}")
    leave(GONE, sentence if status == GONE else f"Process {process} has failed ({sentence}), and all end with it.")


def _bid_farewell(farewell: dict[str, Any]) -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was faster
        store.put("farewell", json.dumps(farewell))
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        store.wait_at_barrier("farewell", FAREWELL_SECONDS)
    if is_first():
        time.sleep(0.5)  # JAX aborts those that lose the first one


def gone(reason: str) -> str:
    """What to say where another process has gone."""
    return f"Another process has gone ({reason}), and all end with it; the same commands go on."


def end_well_when_aborted(sentence: str, *, status: int) -> None:
    """Say what happens when JAX aborts this process, as it does where another is lost."""
    message = f"{program()}: error: {sentence}\n".encode() if sentence else b""

    def end(_: int) -> None:
        os.write(2, message)
        os._exit(status)

    if os.name == "posix":
        # Not by `signal`, whose handlers wait for the main thread; C may call this one in any.
        _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(end))
        ctypes.CDLL(None).signal(int(signal.SIGABRT), _handlers[-1])


def end_at_once(status: int, sentence: str = "") -> NoReturn:
    """End without JAX's farewell, which waits for all."""
    if sentence:
        print(sentence, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def program() -> str:
    """Name of the program, for its messages."""
    return Path(sys.argv[0]).name
