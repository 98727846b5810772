import socket

import pytest

from tests.system.fellows import Fellows
from transformer_jax.system import distributed
from transformer_jax.system.distributed import meeting
from transformer_jax.system.distributed.meeting import Place, _find_place
from transformer_jax.system.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """No cluster, wherever the tests run."""
    for name in [*SLURM, "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS", "OMPI_MCA_orte_hnp_uri"]:
        monkeypatch.delenv(name, raising=False)


def test_one_process_alone_meets_nobody():
    distributed.start()
    assert distributed.count() == 1


def test_options_say_all():
    place = _find_place(False, "10.0.0.1:1234", 4, 3)
    assert place == Place("10.0.0.1:1234", 4, 3)


def test_slurm_says_all_by_itself(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert _find_place(False, None, None, None) == Place("node3:61440", 2, 1, [0])
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert _find_place(False, None, None, None) == Place("node3:61440", 2, 1), "JAX reads that one"
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert _find_place(False, None, None, None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((True, None, None, None), "^No cluster was found .*; give --coordinator HOST:PORT, --num_processes N"),
        ((False, "localhost:1", 2, None), "^No cluster was found"),
        ((False, None, 2, 0), "^No cluster was found"),
        ((False, "localhost", 2, 0), "^--coordinator is 'localhost', but must be HOST:PORT"),
        ((False, "localhost:0", 2, 0), "^--coordinator is 'localhost:0'"),
        ((False, ":99", 2, 0), "^--coordinator is ':99'"),
        ((False, "localhost:99", 2, 2), "^--process_id is 2, but must lie in 0 to 1"),
        ((False, "localhost:99", 2, -1), "^--process_id is -1"),
        ((False, "localhost:99", 0, 0), "^--num_processes is 0"),
    ],
)
def test_mistakes_are_told(options, message):
    with pytest.raises(UserError, match=message):
        _find_place(*options)


def test_a_port_in_use_is_told():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"at port {port} .*; choose another in --coordinator"):
            meeting._require_free(f"localhost:{port}")
    meeting._require_free(f"localhost:{port}")


def test_an_absent_coordinator_is_told(monkeypatch):
    with socket.socket(socket.AF_INET6) as found:
        found.bind(("", 0))
        port = found.getsockname()[1]
    with pytest.raises(UserError, match=rf"^No process 0 answers at localhost:{port} \(.*refused\)"):
        meeting._find_coordinator(f"localhost:{port}", meeting.time.monotonic() + 5.5)


class Left(Exception):
    """Stands in for the end of a process."""


@pytest.mark.parametrize(
    ("counts", "releases", "message"),
    [
        ((2, 2), ("1.0", "1.0"), None),
        ((2, 3), ("1.0", "1.0"), "--num_processes is {} at process {}, but {} at process {}; it must be the same"),
        ((2, 2), ("1.0", "1.1"), "transformer-jax is {} at process {}, but {} at process {}; it must be the same"),
    ],
)
def test_all_must_have_the_same_release_and_count(monkeypatch, counts, releases, message):
    def leave(status, sentence):
        assert status == 2
        raise Left(sentence)

    two = Fellows(monkeypatch, 2)
    monkeypatch.setattr(meeting, "leave", leave)
    monkeypatch.setattr(meeting, "_release", lambda name: releases[two.here.index] if "-" in name else "same")
    ends = two.do(
        lambda i: meeting._require_one_of_each(Place("localhost:1", counts[i], i), meeting.time.monotonic() - 49)
    )
    if message is None:
        assert ends == [None, None]
        return
    differing = counts if len(set(counts)) > 1 else releases
    for i, end in enumerate(ends):
        assert message.format(differing[1 - i], 1 - i, differing[i], i) in str(end)
