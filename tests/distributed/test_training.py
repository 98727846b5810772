"""Several processes train as one; if one is killed, stopped or wrongly started, all end with a message and a status."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launch import FLAGS, SECONDS, Processes, assert_refused, free_port, text_files, train
from transformer_jax.system.distributed import PEER_LOST
from transformer_jax.system.distributed.lifecycle import MEETING_SECONDS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return text_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Folder of an uninterrupted run of one process."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    [ended] = train(workdir, data, 1).wait()
    assert ended.status == 0, ended.err
    return workdir


def lines(workdir, kind):
    found = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def assert_same_run(workdir, whole):
    """The same examples in the same order gave the same losses, gradients and scores."""
    for kind in ("train", "evaluation"):
        ours, theirs = lines(workdir, kind), lines(whole, kind)
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for name in ("loss", "grad_norm", "tokens", "perplexity"):
            values = [[line.get(name, 0.0) for line in side] for side in (ours, theirs)]
            np.testing.assert_allclose(*values, rtol=1e-5, err_msg=f"{kind} {name}")
    weights = [(folder / "model" / "model.safetensors").stat().st_size for folder in (workdir, whole)]
    assert weights[0] == weights[1]


def assert_goes_on(workdir, data, whole, count):
    """Evaluates what others saved at step 10 as they did, on a mesh of its own, and ends as they did."""
    [before, _] = lines(workdir, "evaluation")
    for folder in ("checkpoints/15", "checkpoints/20", "model"):
        shutil.rmtree(workdir / folder)
    ended = train(workdir, data, count).wait()
    assert [process.status for process in ended] == [0] * count, ended
    assert "Resuming from step 10" in ended[0].out
    [after, _] = lines(workdir, "evaluation")
    assert after["step"] == before["step"] == 10
    assert after["loss"] == pytest.approx(before["loss"], rel=1e-6)
    assert_same_run(workdir, whole)


def wait_for_step(processes, workdir, step, seconds=100):
    """Return when a checkpoint of at least this step is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        names = [path.name for path in (workdir / "checkpoints").glob("[0-9]*")]
        if any(name.isdecimal() and int(name) >= step for name in names):
            return
        assert all(process.poll() is None for process in processes.processes), processes.wait()
        time.sleep(0.02)
    processes.kill()
    pytest.fail(f"no checkpoint of step {step} within {seconds} s")


@pytest.mark.parametrize(
    ("count", "devices", "mesh"), [(2, 1, "tensor"), pytest.param(4, 1, "fsdp", marks=pytest.mark.soak)]
)
def test_processes_equal_one(data, whole, tmp_path, count, devices, mesh):
    axes = [f"--config.mesh.data={-1 if mesh == 'data' else 1}", f"--config.mesh.{mesh}=-1"]
    ended = train(tmp_path, data, count, devices=devices, more=axes).wait()
    assert [process.status for process in ended] == [0] * count, ended
    assert_same_run(tmp_path, whole)
    assert not any("Step" in process.out for process in ended[1:]), "only the first one reports"
    assert_goes_on(tmp_path, data, whole, 1)


@pytest.mark.soak
def test_scanned_layers_are_scanned_by_all(data, tmp_path):
    scans = ["--config.model.scan_layers=True", "--config.mesh.data=1", "--config.mesh.fsdp=-1"]
    for folder, count in (("one", 1), ("two", 2)):
        ended = train(tmp_path / folder, data, count, more=scans).wait()
        assert [process.status for process in ended] == [0] * count, ended
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("victim", [0, 2])
def test_when_one_is_killed_the_others_end_and_one_process_goes_on(data, whole, tmp_path, victim):
    processes = train(tmp_path, data, 4)
    wait_for_step(processes, tmp_path, 5)
    processes.processes[victim].kill()
    killed_at = time.monotonic()
    ended = processes.wait()
    assert time.monotonic() - killed_at < 60
    for index, process in enumerate(ended):
        if index != victim:
            assert process.status == PEER_LOST, process
            told = [line for line in process.err.splitlines() if line.startswith("transformer-jax: error:")]
            assert len(told) == 1
            assert "Another process was lost" in told[0]
            assert "Traceback" not in process.err
    [resumed] = train(tmp_path, data, 1).wait()
    assert resumed.status == 0, resumed.err
    assert "Resuming from step" in resumed.out
    assert_same_run(tmp_path, whole)


def test_what_one_process_saved_on_eight_devices_two_go_on_with(data, whole, tmp_path):
    [alone] = train(tmp_path, data, 1, devices=8, more=["--config.mesh.data=2", "--config.mesh.fsdp=4"]).wait()
    assert alone.status == 0, alone
    assert_goes_on(tmp_path, data, whole, 2)


@pytest.mark.parametrize("told", [[1], [0, 1]])
def test_sigterm_stops_all(data, whole, tmp_path, told):
    processes = train(tmp_path, data, 2)
    wait_for_step(processes, tmp_path, 5)
    for index in told:
        processes.processes[index].send_signal(signal.SIGTERM)
    ended = processes.wait()
    assert [process.status for process in ended] == [0, 0], ended
    assert "stopped" in ended[0].out.lower(), "only the first one reports"
    resumed = train(tmp_path, data, len(told)).wait()
    assert [process.status for process in resumed] == [0] * len(told), resumed
    assert_same_run(tmp_path, whole)


def catches_sigterm(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows which signals a process catches")
def test_sigterm_at_any_moment(data, whole, tmp_path):
    """Of runs that are begun again and again until they are through."""
    moments = random.Random(6)
    stopped, runs = 0, 0
    while stopped < 20 or runs == 0:
        workdir = tmp_path / str(runs)
        process = train(workdir, data, 1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.processes[0].wait(moments.uniform(0.0, 8.0) if stopped < 20 else SECONDS)
        while process.processes[0].poll() is None and not catches_sigterm(process.processes[0].pid):
            time.sleep(0.01)  # Python itself is still starting
        if process.processes[0].poll() is None:
            process.processes[0].send_signal(signal.SIGTERM)
            stopped += 1
        [ended] = process.wait()
        assert ended.status == 0, ended
        assert "Traceback" not in ended.err
        if (workdir / "model").exists():
            assert_same_run(workdir, whole)
            for name in ("log", "samples"):
                assert (workdir / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes()
            runs += 1


def test_a_mistake_at_one_host_ends_all(data, tmp_path):
    ended = train(tmp_path / "run", data, 2, own={1: ["--config.data.train_source=missing"]}).wait(60)
    assert_refused(ended, "config.data.train_source")


@pytest.mark.parametrize(
    ("index", "message"), [(1, "No process 0 answers at localhost:"), (0, "Only some of 2 processes met at localhost:")]
)
def test_a_process_that_nobody_joins_gives_up(data, tmp_path, index, message):
    assert MEETING_SECONDS < 55
    code = (
        "import runpy, sys; from transformer_jax.system.distributed import lifecycle; lifecycle.MEETING_SECONDS = 7.0\n"
        "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    )
    place = [f"--coordinator=localhost:{free_port()}", "--num_processes=2", f"--process_id={index}"]
    [ended] = Processes(["-c", code, *FLAGS, *data, f"--workdir={tmp_path / 'run'}", *place], 1).wait(60)
    assert ended.status == 2
    assert message in ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert not os.path.exists(tmp_path / "run")
