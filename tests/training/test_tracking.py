"""Each line of the log is told once, whatever happens to the run, and no tracker ends it."""

import json
import threading
import time
from typing import get_args

import pytest

from tests.bucket import Bucket
from tests.training.test_logging import evaluate, records, scalars, write
from tests.training.test_loop import Killed, few_records, interrupt_at, kill, lines, scores, short  # noqa: F401
from transformer_jax.config import TrainingConfig, default_config, from_config_dict
from transformer_jax.system import UserError, field_types
from transformer_jax.system.files import as_path
from transformer_jax.training import run, tracking
from transformer_jax.training.logging import RunLog
from transformer_jax.training.trackers import KINDS, TRACKERS

CONFIG = {"task": "translation", "optim": {"lr": 0.5, "name": "adam"}, "seed": 3}


class Fake:
    """Keeps what it is told for longer than a process lives."""

    package = "json"
    told: list = []  # noqa: RUF012
    runs: list = []  # noqa: RUF012

    def __init__(self, run):
        self.runs.append(run)

    def log(self, record):
        self.told.append(record)

    def flush(self):
        pass

    def close(self):
        self.told.append("closed")


@pytest.fixture
def fake(monkeypatch):
    """The tracker `wandb`, replaced by one that takes everything."""
    monkeypatch.setattr(Fake, "told", [])
    monkeypatch.setattr(Fake, "runs", [])
    monkeypatch.setitem(TRACKERS, "wandb", Fake)
    return Fake


def follow(workdir, first, last, *, names=("wandb",), config=CONFIG, num_steps=8):
    """A process of a run that makes the steps up to `last`; with the line of an evaluation at each even one."""
    with RunLog(workdir, first_step=first, num_steps=num_steps, trackers=names, config=config) as log:
        if first and first % 2 == 0:
            evaluate(log, first)
        write(log, range(first + 1, last + 1))
        if last == num_steps:
            log.final(last, {"bleu": 7.5}, {"minutes": 3.0})


def places(told):
    return [(record.step, record.kind) for record in told if record != "closed"]


def logged(workdir):
    return [(line["step"], line["kind"]) for line in records(workdir / "log.jsonl") if line["kind"] in KINDS]


def test_the_config_knows_the_trackers():
    choice = get_args(get_args(field_types(TrainingConfig)["trackers"])[0])[1]
    assert choice.names == tuple(TRACKERS)
    config = default_config()
    config.training.trackers = ("tensorboard", "wandbb")
    with pytest.raises(UserError, match=r"config\.training\.trackers is 'wandbb', but must be one of tensorboard, wan"):
        from_config_dict(config)


def test_a_tracker_is_told_the_log(tmp_path, fake):
    follow(tmp_path / "numerals", 0, 8)
    assert places(fake.told) == logged(tmp_path / "numerals")
    assert fake.told[-1] == "closed"
    first = fake.told[0]
    assert first.values == {
        "train/loss": 1.0,
        "train/lr": 0.1,
        "train/epoch": 0.0,
        "train/tokens_per_second": 1000.5,
        "train/minutes": 0.1,
    }
    assert abs(first.time - time.time()) < 600
    assert fake.told[2].values == {"evaluation/bleu": 6.0, "evaluation/seconds": 2.0}, "text is no number"
    (tracked,) = fake.runs
    assert (tracked.name, tracked.config) == ("numerals", CONFIG)


@pytest.mark.parametrize("resumed_at", [0, 3, 4, 6])
def test_no_line_is_told_twice(tmp_path, fake, resumed_at):
    """The lines after the last checkpoint are cut, and written again by the resumed run."""
    follow(tmp_path, 0, 6)
    follow(tmp_path, resumed_at, 8)
    assert places(fake.told) == logged(tmp_path)
    before, after = fake.runs
    assert before.id == after.id


def test_a_tracker_that_comes_later_is_told_everything(tmp_path, fake):
    follow(tmp_path, 0, 6, names=())
    assert not (tmp_path / "trackers.json").exists()
    follow(tmp_path, 4, 8)
    assert places(fake.told) == logged(tmp_path)
    assert fake.told[0].values["train/tokens_per_second"] == 1000.5


def test_a_line_is_noted_before_it_is_told(tmp_path, fake, monkeypatch):
    def log(self, record):
        told = json.loads((tmp_path / "trackers.json").read_text())["sent"]
        assert told == {"wandb": {"step": record.step, "kind": record.kind}}
        self.told.append(record)

    monkeypatch.setattr(fake, "log", log)
    follow(tmp_path, 0, 8)
    assert places(fake.told) == logged(tmp_path)


def test_a_run_without_checkpoint_starts_again(tmp_path, fake):
    """With the same config it goes on, with another it is another run."""
    follow(tmp_path, 0, 2)
    follow(tmp_path, 0, 4)
    assert places(fake.told) == logged(tmp_path)
    fake.told.clear()
    follow(tmp_path, 0, 8, config=CONFIG | {"seed": 4})
    assert places(fake.told) == logged(tmp_path)
    assert len({tracked.id for tracked in fake.runs}) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "a"}', b'{"id": 1, "sent": {"wandb": {"step": "x"}}}'])
def test_a_damaged_note_makes_a_new_run(tmp_path, fake, content):
    follow(tmp_path, 0, 4, names=())
    (tmp_path / "trackers.json").write_bytes(content)
    follow(tmp_path, 4, 8)
    assert places(fake.told) == logged(tmp_path)


def test_what_is_missing_is_said_once(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no_such_package").mkdir()  # as wandb leaves a folder of its own name
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fake, "package", "no_such_package")
    follow(tmp_path / "run", 0, 8, names=("tensorboard", "wandb", "wandb"))
    out = capsys.readouterr().out
    assert out.count("wandb") == 1
    assert out.startswith(
        "config.training.trackers names wandb, which is not installed; the run continues without it "
        "(pip install 'transformer-jax[trackers]')\n"
    )
    assert fake.told == []
    assert scalars(tmp_path / "run" / "tensorboard")["train/loss", 8] == 0.125


@pytest.mark.parametrize("at", ["__init__", "log", "close"])
def test_a_tracker_that_fails_is_dropped(tmp_path, fake, monkeypatch, capsys, at):
    def fail(self, *arguments):
        raise ConnectionError("no network.\nTry again.")

    monkeypatch.setitem(TRACKERS, "mlflow", fake)
    monkeypatch.setitem(TRACKERS, "wandb", type("Broken", (Fake,), {at: fail, "told": []}))
    follow(tmp_path, 0, 8, names=("wandb", "mlflow", "tensorboard"))
    out = capsys.readouterr().out
    assert out.count("wandb is dropped (no network); the run continues, and log.jsonl has all values\n") == 1
    assert out.count("no network") == 1
    assert places(fake.told) == logged(tmp_path)
    assert scalars(tmp_path / "tensorboard")["final/bleu", 8] == 7.5


def test_what_a_dropped_tracker_missed_is_told_when_the_run_resumes(tmp_path, fake, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fake, "__init__", lambda self, run: (_ for _ in ()).throw(ConnectionError()))
        follow(tmp_path, 0, 6)
    assert fake.told == []
    follow(tmp_path, 6, 8)
    assert places(fake.told) == logged(tmp_path)


def test_a_slow_tracker_delays_nothing(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    going_on, is_over = threading.Event(), threading.Event()
    monkeypatch.setattr(fake, "log", lambda self, record: going_on.wait(60))
    monkeypatch.setattr(fake, "close", lambda self: is_over.set())
    follow(tmp_path, 0, 8)
    assert not is_over.is_set()
    assert "wandb did not take the last values within 0 s; log.jsonl has all of them\n" in capsys.readouterr().out
    going_on.set()
    assert is_over.wait(60)


def test_a_bucket_keeps_what_was_told(bucket, fake):
    workdir = as_path("gs://bucket/runs/numerals")
    names = ("wandb", "tensorboard")
    follow(workdir, 0, 6, names=names)
    before = {name for name in bucket() if "tensorboard" in name}
    time.sleep(1.1)  # event files are named by the second
    follow(workdir, 4, 8, names=names)
    lines = [json.loads(line) for line in bucket()["bucket/runs/numerals/log.jsonl"].splitlines()]
    assert places(fake.told) == [(line["step"], line["kind"]) for line in lines]
    assert {tracked.name for tracked in fake.runs} == {"numerals"}
    events = {name for name in bucket() if "tensorboard" in name}
    assert len(events) == len(before) == 1
    assert events != before, "the log is told anew"


def test_what_cannot_be_noted_is_told_later(bucket, fake):
    with RunLog(as_path("gs://bucket/run"), first_step=0, num_steps=8, trackers=("wandb",), config=CONFIG) as log:
        Bucket.broken = RuntimeError("no network")
        write(log, [1, 2])
        log._trackers._feeds[0]._queue.put(None)  # its thread takes what is there, and ends
        log._trackers._feeds[0]._thread.join()
        assert fake.told == ["closed"]
        Bucket.broken = None
    follow(as_path("gs://bucket/run"), 2, 8)
    lines = [json.loads(line) for line in bucket()["bucket/run/log.jsonl"].splitlines()]
    assert places(fake.told) == [(line["step"], line["kind"]) for line in lines]


def test_the_trackers_of_a_training_that_is_killed(tmp_path, monkeypatch, scores, fake):  # noqa: F811
    scores(1.0)
    config = short(log_every=1, checkpoint_every=2, trackers=("tensorboard", "wandb"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4, kill)
        with pytest.raises(Killed):
            run(config, tmp_path)
    assert places(fake.told)[-1] == (3, "train"), "after the checkpoint of step 2"
    with config.unlocked():
        config.training.trackers = ("wandb",)  # may change
    run(config, tmp_path)
    assert places(fake.told) == [(line["step"], line["kind"]) for line in lines(tmp_path)]
    assert {tracked.config["optim"]["warmup_steps"] for tracked in fake.runs} == {10}
