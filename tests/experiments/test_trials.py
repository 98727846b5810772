"""Sweeps with real runs: in this process, and as commands that are killed and go on."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from transformer_jax.config import load_config_file
from transformer_jax.experiments.space import Hyper, check_points, load_points
from transformer_jax.system.ownership import InUseError, Ownership

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'transformer-jax[sweep]'")

from transformer_jax.experiments.folder import Sweep, claim_sweep, run_folder
from transformer_jax.experiments.study import Study
from transformer_jax.experiments.trial import run_trial

h = Hyper()

CONFIG = """
from transformer_jax.config import default_config

def get_config():
    config = default_config()
    config.data.update(name="text", train_file={pairs!r}, validation_file={pairs!r}, max_length=16, row_length=16)
    config.data.tokens_per_batch = 64
    config.tokenizer.update(kind="char", vocab_size=60)
    config.model.update(d_model=8, num_heads=2, d_ff=8, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.0)
    config.decoding.update(beam_size=1, max_extra_tokens=1)
    config.optim.update(schedule="constant", lr=1e-3, warmup_steps=0)
    config.training.update(num_steps={steps}, log_every=1, eval_every=2, checkpoint_every=1, metric="loss")
    return config

def get_hyper(h):
    return h.product([h.sweep("optim.lr", [1e-3, 1e-2]), h.sweep("seed", [1, 2, 3, 4])])
"""


@pytest.fixture
def config_file(tmp_path):
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{word}\t{word[::-1]}\n" for word in ("ab", "bca", "cab", "aab", "ccb", "abc")))
    path = tmp_path / "letters.py"
    path.write_text(CONFIG.format(pairs=str(pairs), steps=4))
    return path


def sweep_of(path, folder, points=None, **fields):
    config = load_config_file(str(path))
    points = check_points(load_points(str(path)) if points is None else points, config)
    wanted = Sweep(config.to_dict(), points, metric="loss", minimize=True, **{"sampler": "random", **fields})
    return Study(folder, claim_sweep(folder, wanted))


def test_trials_are_runs_of_their_values(config_file, tmp_path):
    folder = tmp_path / "sweep"
    study = sweep_of(config_file, folder, points=h.sweep("optim.lr", [1e-3, 1e-2]), prune="median")
    numbers = [study.ask(2, "program"), study.ask(2, "program")]
    for number in numbers:
        assert run_trial(folder, number, None) == 0
    found = study.trials()
    for trial, lr in zip(found, (1e-3, 1e-2), strict=True):
        config = json.loads((run_folder(folder, trial.number) / "config.json").read_text())
        assert config["optim"]["lr"] == lr
        log = [json.loads(line) for line in (run_folder(folder, trial.number) / "log.jsonl").read_text().splitlines()]
        told = {line["step"]: line["loss"] for line in log if line["kind"] == "evaluation"}
        assert trial.intermediate_values == pytest.approx(told)
        assert trial.value == pytest.approx(next(line["loss"] for line in log if line["kind"] == "final"))


def test_a_trial_that_is_pruned_stops_at_once(config_file, tmp_path, monkeypatch):
    folder = tmp_path / "sweep"
    study = sweep_of(config_file, folder)
    number = study.ask(8, "program")
    report = Study.report
    monkeypatch.setattr(Study, "report", lambda *told: bool(report(*told)) or True)
    assert run_trial(folder, number, None) == 0
    (trial,) = study.trials()
    assert (trial.state.name, trial.last_step) == ("PRUNED", 2)
    assert not (run_folder(folder, number) / "model").exists()
    assert (run_folder(folder, number) / "checkpoints" / "2").exists()


def test_what_a_person_can_mend_is_told_in_one_sentence(config_file, tmp_path):
    folder = tmp_path / "sweep"
    study = sweep_of(config_file, folder)
    number = study.ask(8, "program")
    (tmp_path / "pairs.tsv").unlink()
    assert run_trial(folder, number, None) == 0
    (trial,) = study.trials()
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["error"].startswith(f"{tmp_path / 'pairs.tsv'} cannot be read")


def test_a_trial_that_another_program_runs_is_left_to_it(config_file, tmp_path):
    folder = tmp_path / "sweep"
    study = sweep_of(config_file, folder)
    number = study.ask(8, "program")
    owner = Ownership(run_folder(folder, number))
    owner.acquire()
    try:
        with pytest.raises(InUseError, match="is in use by"):
            run_trial(folder, number, None)
    finally:
        owner.release()
    assert study.trials()[0].state.name == "RUNNING"


@pytest.fixture(scope="module")
def postgresql():
    """URL of a database of a server of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb") or (programs and programs[-1] / "initdb")
    if not found:
        pytest.skip("PostgreSQL is not installed; on Debian, apt install postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    binaries, own = Path(found).resolve().parent, []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not a folder of pytest: those are closed to the user that the server runs as, for it refuses to run as root.
    with tempfile.TemporaryDirectory(prefix="transformer_jax-postgresql-", ignore_cleanup_errors=True) as data:
        if os.geteuid() == 0:
            os.chown(data, 65534, 65534)
            own = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

        def call(*arguments):
            subprocess.run([*own, *arguments], check=True, capture_output=True, cwd="/")

        call(binaries / "initdb", "-D", data, "-U", "me", "-A", "trust")
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        call(binaries / "pg_ctl", "-D", data, "-w", "-l", f"{data}/log", "-o", options, "start")
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
        call(binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop")


def test_a_study_in_postgresql(config_file, tmp_path, postgresql):
    folder = tmp_path / "sweep"
    sweep = dataclasses.replace(sweep_of(config_file, folder, name="here").sweep, storage=postgresql)
    programs = [Study(folder, sweep, postgresql), Study(folder, sweep, postgresql)]
    numbers = [programs[index % 2].ask(3, f"program {index}") for index in range(4)]
    assert numbers == [0, 1, 2, None]
    programs[1].report(0, 10, 1.5)
    programs[0].finish(0, 1.0)
    programs[0].finish(1, error="No.")
    programs[1].finish(2, pruned=True)
    programs[1].finish(0, error="late")
    assert [trial.state.name for trial in programs[0].trials()] == ["COMPLETE", "FAIL", "PRUNED"]
    assert programs[1].trials()[0].intermediate_values == {10: 1.5}
    for program in programs:
        program.close()


def command(path, folder, *options):
    return [
        *(sys.executable, "-m", "transformer_jax", "sweep", "--config", str(path), "--workdir", str(folder)),
        *("--workers", "2", *options),
    ]


def processes_of(folder):
    """All processes whose command names the folder, jobs of submitit too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def kill_all(folder):
    while pids := processes_of(folder):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def is_under_way(folder):
    """Whether a trial has a checkpoint, but has not finished."""
    begun = {path.parents[1] for path in folder.glob("trials/*/checkpoints/[0-9]*/commit_success.txt")}
    return any(not (run / "finished.json").exists() for run in begun)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("processes, a journal", marks=pytest.mark.soak), "submitit, PostgreSQL"])
def test_a_killed_sweep_goes_on(config_file, tmp_path, request, kind):
    folder, options = tmp_path / "sweep", []
    if kind == "submitit, PostgreSQL":
        pytest.importorskip("submitit", reason="submitit is not installed: pip install 'transformer-jax[sweep]'")
        options = ["--launcher", "local", "--storage", request.getfixturevalue("postgresql")]
    longer = config_file.read_text().replace("num_steps=4", "num_steps=20").replace("eval_every=2", "eval_every=10")
    config_file.write_text(longer)
    program = subprocess.Popen(command(config_file, folder, *options), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(list(folder.glob("trials/*/finished.json"))) < 3 or not is_under_way(folder):
        assert time.monotonic() < deadline
        assert program.poll() is None
        time.sleep(0.05)
    kill_all(folder)
    program.wait()
    done = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/finished.json")}
    assert 3 <= len(done) < 8

    again = subprocess.run(command(config_file, folder, *options), capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    for name, written in done.items():
        assert (folder / "trials" / name / "finished.json").stat().st_mtime_ns == written
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["trial"] for row in rows) == list("01234567")
    assert {row["state"] for row in rows} == {"finished"}
    assert len({(row["optim.lr"], row["seed"]) for row in rows}) == 8
    assert [float(row["loss"]) for row in rows] == sorted(float(row["loss"]) for row in rows)
    assert {"history.png", "learning_curves.png"} <= {path.name for path in (folder / "pictures").iterdir()}
    assert f"Best: trial {rows[0]['trial']}, loss" in again.stdout
    resumed = [path.read_text() for path in folder.glob("trials/*.log")]
    assert any("Resuming from step" in text for text in resumed)
    assert processes_of(folder) == []
