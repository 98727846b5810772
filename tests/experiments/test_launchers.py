"""Devices of workers, and the processes and jobs of trials."""

import os
import signal
import subprocess
import sys
import time

import pytest

from transformer_jax.experiments import launchers
from transformer_jax.experiments.launchers import Processes, Submitted, local_devices, worker_environments
from transformer_jax.experiments.trial import CORES_VARIABLE, STORAGE_VARIABLE
from transformer_jax.system import UserError

CORES = ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("workers", "devices", "expected"),
    [
        (None, {"cpu": CORES}, [{}]),
        (2, {"cpu": CORES}, [{CORES_VARIABLE: "0,2"}, {CORES_VARIABLE: "1,3"}]),
        (5, {"cpu": CORES}, [{}] * 5),
        (None, {"cpu": CORES, "gpu": ["0", "1"]}, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (2, {"gpu": ["0", "1", "2", "3"]}, [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1,3"}]),
        (
            3,
            {"gpu": ["0", "1"]},
            [{"CUDA_VISIBLE_DEVICES": gpu, "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"} for gpu in ("0", "1", "0")],
        ),
        (1, {"tpu": ["0"]}, [{}]),
    ],
)
def test_each_worker_has_its_own_devices(workers, devices, expected):
    assert worker_environments(workers, devices) == expected


def test_each_worker_has_its_own_chip():
    environments = worker_environments(None, {"tpu": ["0", "1", "2", "3"]})
    assert [each["TPU_VISIBLE_CHIPS"] for each in environments] == ["0", "1", "2", "3"]
    assert {each["TPU_CHIPS_PER_PROCESS_BOUNDS"] for each in environments} == {"1,1,1"}
    with pytest.raises(UserError, match="--workers is 5, but there are 4 TPU chips, and one serves one process"):
        worker_environments(5, {"tpu": ["0", "1", "2", "3"]})


def test_the_devices_of_this_machine(monkeypatch):
    files = {"/dev/nvidia*": ["/dev/nvidia1", "/dev/nvidia0", "/dev/nvidiactl"], "/dev/vfio/[0-9]*": ["/dev/vfio/0"]}
    monkeypatch.setattr(launchers.glob, "glob", lambda pattern: files.get(pattern, []))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    found = local_devices()
    assert (found["gpu"], found["tpu"]) == (["0", "1"], ["0"])
    assert found["cpu"] == [str(core) for core in sorted(os.sched_getaffinity(0))]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert local_devices()["gpu"] == ["5", "7"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert set(local_devices()) == {"cpu"}


def python(code):
    """Stands in for the command of a trial, which takes seconds to import."""
    return lambda folder, number: [sys.executable, "-c", code, str(folder), str(number)]


@pytest.fixture
def waiting(monkeypatch):
    """Trials tell their variables, and wait."""
    said = f"os.environ.get({STORAGE_VARIABLE!r}), os.environ['WORKER']"
    code = f"import os, time; print({said}, flush=True); time.sleep(60)"
    monkeypatch.setattr(launchers, "command_of", python(code))


def test_processes_take_free_devices_and_stop(tmp_path, waiting):
    workers = Processes(tmp_path, "sqlite://", [{"WORKER": "first"}, {"WORKER": "second"}])
    jobs = [workers.start(0), workers.start(1)]
    assert [job.status() for job in jobs] == [None, None]
    jobs[0].stop()
    jobs[0].wait()
    assert jobs[0].status() == -signal.SIGTERM
    jobs.append(workers.start(2))
    logs = [tmp_path / "trials" / f"00{number}.log" for number in (1, 2)]
    until(lambda: all(log.read_text() for log in logs))
    for job in jobs:
        job.stop()
        job.wait()
    assert [log.read_text().split() for log in logs] == [["sqlite://", "second"], ["sqlite://", "first"]]


def until(found, seconds=300):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_jobs_of_submitit(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'transformer-jax[sweep]'")
    monkeypatch.setattr(launchers, "command_of", python("import os, sys; print(sys.argv[2]); sys.exit(3)"))
    jobs = Submitted(tmp_path, None, 2, "local", {"timeout_min": 1})
    job = jobs.start(5)
    until(lambda: job.status() is not None)
    assert job.status() == 3
    assert (tmp_path / "trials" / "005.log").read_text() == "5\n"
    slow = Submitted(tmp_path, None, 2, "local", {})
    monkeypatch.setattr(launchers, "command_of", python("import time; print('begun', flush=True); time.sleep(600)"))
    job = slow.start(6)
    begun = tmp_path / "trials" / "006.log"
    until(lambda: begun.exists() and begun.read_text())  # earlier, submitit itself would not hear of it
    assert job.status() is None
    assert slow.find(job.name) is None, "of those on this machine none is found again"
    job.stop()
    until(lambda: job.status() is not None)
    assert job.status() != 0


def test_jobs_of_slurm_are_found_again(tmp_path, monkeypatch):
    """With programs in place of Slurm's that say that job 17 runs and job 18 has failed."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'transformer-jax[sweep]'")
    said = "JobID|State|NodeList\\n17|RUNNING|n1\\n18|FAILED|n1\\n"
    for name, code in (("srun", ""), ("sbatch", ""), ("sacct", f"printf '{said}'")):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    jobs = Submitted(tmp_path, None, 2, "slurm", {})
    assert jobs.find(None) is jobs.find("") is jobs.find("18") is None
    assert jobs.find("17").status() is None


@pytest.mark.parametrize(
    ("cluster", "parameters", "sentence"),
    [
        ("slurm", {}, "--launcher slurm can't be used ("),
        ("local", {"slurm_partitoin": "gpu"}, "--launcher local can't be used ("),
    ],
)
def test_jobs_that_cannot_be_submitted(tmp_path, monkeypatch, cluster, parameters, sentence):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'transformer-jax[sweep]'")
    monkeypatch.setenv("PATH", str(tmp_path))  # without srun
    with pytest.raises(UserError) as caught:
        Submitted(tmp_path, None, 1, cluster, parameters)
    assert str(caught.value).startswith(sentence)


def test_a_trial_ends_with_the_program_that_watches_it(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    code = f"""
import os, pathlib, time
from transformer_jax.experiments import trial

def end():
    pathlib.Path({str(ended)!r}).touch()
    os._exit(0)

trial._WATCHED_SECONDS = 0.05
trial.end_with(os.getppid(), end)
pathlib.Path({str(begun)!r}).touch()
time.sleep(60)
"""
    watching = f"import subprocess, sys; subprocess.call([sys.executable, '-c', {code!r}])"
    process = subprocess.Popen([sys.executable, "-c", watching])
    until(begun.exists)
    assert not ended.exists()
    process.kill()
    process.wait()
    until(ended.exists)
