"""The packages themselves, in processes that are killed."""

import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections import Counter

import pytest

from tests.training.test_logging import events, records, scalars
from tests.training.test_tracking import logged
from transformer_jax.training.trackers import TRACKERS

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from transformer_jax.training.logging import RunLog
from tests.training.test_logging import evaluate, write

workdir, names, first, last = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
config = {"task": "translation", "optim": {"lr": 0.5, "name": "adam", "empty": ""}, "names": ["a", "b"], "seed": 3}
with RunLog(workdir, first_step=first, num_steps=8, trackers=names, config=config) as log:
    if first:
        evaluate(log, first)
    write(log, range(first + 1, last + 1))
    if last == 8:
        log.final(8, {"bleu": 7.5}, {"minutes": 3.0})
    elif names != ["tensorboard"]:
        note, deadline = workdir / "trackers.json", time.monotonic() + 60
        while time.monotonic() < deadline:
            told = json.loads(note.read_text())["sent"] if note.exists() else {}
            if len(told) == len(names) - 1 and all(each["step"] == last for each in told.values()):
                break
            time.sleep(0.1)
        time.sleep(2.5)  # wandb and Trackio store what they have once or twice a second
    if last < 8:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def installed():
    names = [name for name, tracker in TRACKERS.items() if importlib.util.find_spec(tracker.package)]
    return [name for name in names if name != "mlflow" or importlib.util.find_spec("sqlalchemy")]


def needs(name):
    return pytest.mark.skipif(name not in installed(), reason=f"{name} is not installed, or no store on this machine")


def process(folder, names, first, last, **environment):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "HOME": str(folder),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "TRACKIO_DIR": str(folder / "trackio"),
        **environment,
    }
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        environment.pop(name, None)
    command = [sys.executable, "-c", SCRIPT, str(folder / "run"), ",".join(names), str(first), str(last)]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run that is killed at step 6 and goes on from its checkpoint of step 4, with all trackers there are."""
    folder = tmp_path_factory.mktemp("followed")
    first = process(folder, installed(), 0, 6)
    assert first.returncode == -signal.SIGKILL, first.stderr
    second = process(folder, installed(), 4, 8)
    assert second.returncode == 0, second.stderr
    assert "dropped" not in first.stdout + second.stdout
    return folder


def test_tensorboard_has_all_that_the_log_has_when_it_is_killed(tmp_path):
    assert process(tmp_path, ["tensorboard"], 0, 6).returncode == -signal.SIGKILL
    expected = {
        (f"{line['kind']}/{name}", line["step"]): value
        for line in records(tmp_path / "run" / "log.jsonl")
        for name, value in line.items()
        if name not in ("step", "kind") and isinstance(value, int | float)
    }
    assert len(expected) == 6 * 3 + 3
    curves = scalars(tmp_path / "run" / "tensorboard")
    assert {place: curves.get(place) for place in expected} == pytest.approx(expected)


def assert_told_once(rows, workdir):
    """Rows are (step, names of values): the lines of the log, each once."""
    told = Counter((step, name.partition("/")[0]) for step, names in rows for name in {n.split("/")[0] for n in names})
    assert told == Counter(logged(workdir))


@needs("tensorboard")
def test_tensorboard_after_a_kill(followed):
    found = [(e.step, [v.tag for v in e.summary.value]) for e in events(followed / "run" / "tensorboard")]
    assert_told_once([(step, tags) for step, tags in found if tags], followed / "run")


def history_of(path):
    """The rows in a file of wandb: blocks of 32 KiB, with pieces of checksum, length, type and data."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            record, whole = Record.FromString(whole), b""
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@needs("wandb")
def test_wandb_after_a_kill(followed):
    files = sorted(followed.glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1, "one id"
    rows = [row for path in files for row in history_of(path)]
    assert_told_once([(row["step"], [name for name in row if "/" in name]) for row in rows], followed / "run")
    assert next(row["train/loss"] for row in rows if row["step"] == 5) == 0.2


@needs("mlflow")
def test_mlflow_after_a_kill(followed):
    with sqlite3.connect(followed / "mlflow.db") as store:
        ((name, status, experiment),) = store.execute(
            "SELECT runs.name, status, experiments.name FROM runs JOIN experiments USING (experiment_id)"
        ).fetchall()
        metrics = store.execute("SELECT step, key, value FROM metrics").fetchall()
        params = dict(store.execute("SELECT key, value FROM params"))
    assert (name, status, experiment) == ("run", "FINISHED", "transformer-jax")
    assert params == {
        "task": "translation",
        "optim.lr": "0.5",
        "optim.name": "adam",
        "optim.empty": "",
        "names": "['a', 'b']",
        "seed": "3",
    }
    assert max(Counter((step, key) for step, key, _ in metrics).values()) == 1
    rows = {(step, key.partition("/")[0]): [key] for step, key, _ in metrics}
    assert_told_once([(step, keys) for (step, _), keys in rows.items()], followed / "run")
    assert (5, "train/loss", 0.2) in metrics


@needs("trackio")
def test_trackio_after_a_kill(followed):
    with sqlite3.connect(followed / "trackio" / "transformer-jax.db") as store:
        rows = [(step, json.loads(values)) for step, values in store.execute("SELECT step, metrics FROM metrics")]
        names = store.execute("SELECT DISTINCT run_id, run_name FROM metrics").fetchall()
        ((config,),) = store.execute("SELECT config FROM configs").fetchall()
    note = json.loads((followed / "run" / "trackers.json").read_text())
    assert [name for _, name in names] == [f"run-{note['id']}"]
    assert json.loads(config)["optim"]["lr"] == 0.5
    assert_told_once(rows, followed / "run")
    assert next(values["train/loss"] for step, values in rows if step == 5) == 0.2


@needs("wandb")
@needs("mlflow")
def test_without_login_or_network_each_is_dropped_with_a_sentence(tmp_path):
    ended = process(
        tmp_path,
        ["wandb", "mlflow"],
        0,
        8,
        WANDB_MODE="online",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert ended.returncode == 0, ended.stderr
    for name in ("wandb", "mlflow"):
        assert len([line for line in ended.stdout.splitlines() if line.startswith(f"{name} is dropped (")]) == 1
    assert len(logged(tmp_path / "run")) == 8 + 4 + 1
