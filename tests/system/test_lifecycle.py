import os
import socket
import subprocess
import sys

import pytest

from tests.distributed.launch import free_port
from tests.system.fellows import Fellows
from transformer_jax.system import UserError, distributed
from transformer_jax.system.distributed import exchange, lifecycle

SLURM = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No cluster, wherever the tests run."""
    for name in [
        *SLURM,
        *("SLURM_JOB_ID", "SLURM_PROCID", "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS", "OMPI_MCA_orte_hnp_uri"),
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))


def start(script):
    """A process in which JAX has not started."""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_one_process_alone_meets_nobody(monkeypatch):
    distributed.initialize()
    distributed.initialize(num_processes=1, coordinator="localhost:1", process_id=0)
    monkeypatch.setenv("SLURM_JOB_ID", "4096")
    for name, value in {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert distributed.process_count() == 1


@pytest.mark.parametrize("local_ids", [None, "0"])
def test_processes_of_a_slurm_job_meet_without_options(monkeypatch, local_ids):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_JOB_ID", str(os.getpid()))  # from which JAX derives the port
    if local_ids:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", local_ids)
    script = (
        "from transformer_jax.system import distributed; distributed.initialize()\n"
        "print(distributed.all_gather(distributed.process_index()))"
    )
    processes = []
    for index in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(index))
        processes.append(start(script))
    assert [process.communicate(timeout=60) for process in processes] == [("[0, 1]\n", "")] * 2


def test_without_a_cluster_the_options_must_say_all():
    script = """
from transformer_jax.system.distributed import initialize
from transformer_jax.system import UserError
for names in (["distributed"], ["coordinator", "num_processes"], ["num_processes", "process_id"]):
    options = {"distributed": True, "coordinator": "localhost:1", "num_processes": 2, "process_id": 0}
    try:
        initialize(**{name: options[name] for name in names})
    except UserError as error:
        print(error)
"""
    out, err = start(script).communicate(timeout=60)
    assert err == ""
    messages = out.splitlines()
    assert len(messages) == 3
    for message in messages:
        assert message.startswith("No cluster was found (")
        assert "defined" in message, "the reason is JAX's"
        assert message.endswith("; give --coordinator HOST:PORT, --num_processes N and --process_id I to each process.")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("localhost", 2, 0), "^--coordinator is 'localhost', but must be HOST:PORT"),
        (("localhost:0", 2, 0), "^--coordinator is 'localhost:0'"),
        ((":99", 2, 0), "^--coordinator is ':99'"),
        (("localhost:99", 2, 2), "^--process_id is 2, but must lie in 0 to 1"),
        (("localhost:99", 2, -1), "^--process_id is -1"),
        (("localhost:99", 0, 0), "^--num_processes is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(place, message):
    coordinator, num_processes, process_id = place
    with pytest.raises(UserError, match=message):
        distributed.initialize(coordinator=coordinator, num_processes=num_processes, process_id=process_id)


def test_a_port_in_use_is_refused():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"at port {port} .*; choose another in --coordinator"):
            distributed.initialize(coordinator=f"localhost:{port}", num_processes=2, process_id=0)
    lifecycle._require_free(f"localhost:{port}")


def test_an_absent_coordinator_is_reported(monkeypatch):
    monkeypatch.setattr(lifecycle, "MEETING_SECONDS", 5.5)
    port = free_port()
    with pytest.raises(UserError, match=rf"^No process 0 answers at localhost:{port} \(.*refused\)"):
        distributed.initialize(coordinator=f"localhost:{port}", num_processes=2, process_id=1)


def test_all_must_count_alike(monkeypatch):
    two = Fellows(monkeypatch, 2)
    assert two.do(lambda i: lifecycle._require_same_count(2, i)) == [None, None]
    two = Fellows(monkeypatch, 2)
    counts = 2, 3
    for i, end in enumerate(two.do(lambda i: lifecycle._require_same_count(counts[i], i))):
        assert isinstance(end, UserError)
        assert str(end) == (
            f"--num_processes is {counts[1 - i]} at process {1 - i}, but {counts[i]} at process {i}; it must be the "
            "same everywhere."
        )


def test_all_must_have_the_same_release(monkeypatch):
    """As `initialize` compares them, which is of two processes."""
    ended = []
    monkeypatch.setattr(lifecycle, "_connect", lambda *_: True)
    monkeypatch.setattr(lifecycle, "process_count", lambda: 2)
    monkeypatch.setattr(lifecycle, "_watch_others", lambda: None)
    monkeypatch.setattr(lifecycle, "_set_abort_handler", lambda _: None)  # would outlive this test
    monkeypatch.setattr(lifecycle, "exit_all", lambda status, sentence: ended.append((status, sentence)))
    monkeypatch.setattr(lifecycle, "_fail", lambda error: None)
    monkeypatch.setattr(exchange, "all_gather", lambda own: [own, own])
    distributed.initialize(distributed=True)
    assert ended == []
    monkeypatch.setattr(exchange, "all_gather", lambda own: [own, {**own, "transformer-jax": "1.1"}])
    monkeypatch.setattr(lifecycle, "_release", lambda name: "1.0")
    distributed.initialize(distributed=True)
    assert ended == [
        (
            2,
            "transformer-jax is '1.1' at process 1, but '1.0' at process 0; start all with the same command, program "
            "and data.",
        )
    ]


def test_only_several_processes_can_lose_one(monkeypatch):
    lifecycle.raise_if_collective(TimeoutError())
    monkeypatch.setattr(lifecycle, "process_count", lambda: 2)
    lifecycle.raise_if_collective(ValueError("damaged"))
    with pytest.raises(TimeoutError):
        lifecycle.raise_if_collective(TimeoutError())
