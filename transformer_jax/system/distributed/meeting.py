"""How processes meet."""

import importlib.metadata
import json
import os
import signal
import socket
import threading
import time
from typing import NamedTuple

import jax
from jax._src import clusters

from transformer_jax.system.distributed import store
from transformer_jax.system.distributed.ending import (
    GONE,
    end_at_once,
    end_well_when_aborted,
    gone,
    leave,
    program,
    watch_others,
)
from transformer_jax.system.errors import UserError

MEETING_SECONDS = 50.0
"""Processes that have not met after so long give up."""
HEARTBEAT_SECONDS = 20
"""A process that has not been heard of for so long is taken for dead."""

_SAME = ("transformer-jax", "jax", "jaxlib")
"""Packages of which all processes must have the same release."""
_REMEDY = "give --coordinator HOST:PORT, --num_processes N and --process_id I to each."


class Place(NamedTuple):
    """Where a process stands among others."""

    coordinator: str
    """HOST:PORT at which the first process waits for all others."""
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None
    """The devices of this host that are this process's; None: all."""


def start(
    *,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Meet the other processes, if there are any: asked for, or where JAX finds itself in a cluster of several.

    To be called before anything else that has to do with JAX.

    Args:
        distributed: whether to look for others in any case.
        coordinator: HOST:PORT of the first process; None, like the next two: as the cluster says.
        num_processes: how many there are; 1: this one is alone, even in a cluster.
        process_id: the number of this one, from 0.

    Raises:
        UserError: if the options don't say enough or contradict each other, or others are not there.
    """
    deadline = time.monotonic() + MEETING_SECONDS
    place = _find_place(distributed, coordinator, num_processes, process_id)
    if place is None:
        return
    end_well_when_aborted("Not all processes are there any more; start them all anew.", status=2)
    if place.process_id == 0:
        _require_free(place.coordinator)
    else:
        _find_coordinator(place.coordinator, deadline)
    missing = (
        f"{program()}: error: Only some of {place.num_processes} processes met at {place.coordinator} within "
        f"{MEETING_SECONDS:.0f} s; start as many, with one --coordinator and --num_processes, and each with its own "
        "--process_id, or give --num_processes=1 to one that is alone."
    )
    # JAX itself would abort without a word that helps.
    too_late = threading.Timer(deadline - time.monotonic(), end_at_once, (2, missing))
    too_late.daemon = True
    too_late.start()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    jax.distributed.initialize(
        place.coordinator,
        place.num_processes,
        place.process_id,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=round(2 * MEETING_SECONDS),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    if threading.current_thread() is threading.main_thread() and on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)  # JAX has put its notice of preemption in its place
    _require_one_of_each(place, deadline)
    too_late.cancel()
    end_well_when_aborted(gone("it was killed, or the network failed"), status=GONE)
    watch_others()


def _find_place(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Place | None:
    """What the options say and, for the rest, JAX's own detection of clusters."""
    if num_processes == 1:
        return None
    asked = distributed or any(option is not None for option in (coordinator, num_processes, process_id))
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    local = None
    if None in (coordinator, num_processes, process_id):
        try:
            found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
                coordinator, num_processes, process_id, None, None, round(MEETING_SECONDS)
            )
        # It may ask servers that are not there.
        except Exception as error:
            if asked:
                raise UserError(f"No cluster was found ({error}); {_REMEDY}") from error
            return None
        coordinator, num_processes, process_id, local = found
        if "JAX_LOCAL_DEVICE_IDS" in os.environ:
            local = None  # JAX reads it itself
    if not asked and (None in (coordinator, num_processes, process_id) or num_processes == 1):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(f"No cluster was found that would tell where the other processes are; {_REMEDY}")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--coordinator is {coordinator!r}, but must be HOST:PORT, such as 10.0.0.1:1234.")
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}, but must be at least 1.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id}, but must lie in 0 to {num_processes - 1}, one less than --num_processes."
        )
    return Place(coordinator, num_processes, process_id, None if local is None else list(local))


def _require_free(coordinator: str) -> None:
    port = int(coordinator.rpartition(":")[2])
    with _listener() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", port))
        except OSError as error:
            raise UserError(
                f"Process 0 can't wait for others at port {port} ({error.strerror}); choose another in --coordinator."
            ) from error


def _listener() -> socket.socket:
    try:
        return socket.socket(socket.AF_INET6)
    except OSError:  # the kernel has none
        return socket.socket(socket.AF_INET)


def _find_coordinator(coordinator: str, deadline: float) -> None:
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


def _require_one_of_each(place: Place, deadline: float) -> None:
    """Refuse two processes of one number, numbers counted differently, and other releases."""
    own = {"--num_processes": place.num_processes} | {name: _release(name) for name in _SAME}
    try:
        store.put(f"place/{place.process_id}", json.dumps(own))
    except jax.errors.JaxRuntimeError:
        leave(2, f"There are two processes of --process_id {place.process_id}; give each its own.")
    for other in range(place.num_processes):
        found = None
        while found is None and time.monotonic() < deadline + MEETING_SECONDS:  # until the timer ends all
            found = store.find(f"place/{other}")
            time.sleep(0 if found else 0.05)
        for name, value in json.loads(found or "{}").items():
            if value != own[name]:
                leave(
                    2,
                    f"{name} is {value} at process {other}, but {own[name]} at process {place.process_id}; it must be "
                    "the same everywhere.",
                )


def _release(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
