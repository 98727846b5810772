"""Promises: one run at a time has a work folder; whatever happens to the folder, a run ends with one sentence."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from tests.distributed.launch import FLAGS, ROOT, text_files
from tests.reliability.tiny_run import load_few, make_config
from transformer_jax import cli
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.training import loop, run
from transformer_jax.training.setup import Evaluator

SHORT = {"num_steps": 4, "eval_every": 2, "log_every": 1, "keep_checkpoints": 9, "metric": "loss"}


@pytest.fixture(autouse=True)
def quick(few_records, monkeypatch):
    """An evaluation gives nothing but a loss, of the steps 2 and 4 and in the end."""
    monkeypatch.setattr(Evaluator, "__call__", lambda self, params, final: Evaluation({"loss": 1.0}, []))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Folder of a run that nothing has disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "done"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "load_pairs", load_few)
        patch.setattr(Evaluator, "__call__", lambda self, params, final: Evaluation({"loss": 1.0}, []))
        run(make_config(**SHORT), workdir)
    return workdir


def at_step(monkeypatch, step, action):
    """Do something when the batch of a step is about to be used."""
    shard_batch, batches = loop.shard_batch, iter(range(1000))  # the first is the blank one, for compiling

    def counting(batch, mesh):
        if next(batches) == step:
            action()
        return shard_batch(batch, mesh)

    monkeypatch.setattr(loop, "shard_batch", counting)


def contents(workdir):
    files = [path for path in workdir.rglob("*") if path.is_file() and path.name != "owner.json"]
    return {path: path.read_bytes() for path in files if "tensorboard" not in path.parts}


def test_a_second_run_changes_nothing_of_the_first(done, tmp_path, monkeypatch):
    started, goes_on = threading.Event(), threading.Event()

    def pause():
        started.set()
        assert goes_on.wait(60)

    at_step(monkeypatch, 3, pause)
    workdir = tmp_path / "run"
    first = threading.Thread(target=run, args=(make_config(**SHORT), workdir))
    first.start()
    assert started.wait(60)
    before = contents(workdir)
    other = make_config(**SHORT)
    other.update(seed=5)
    other.tokenizer.vocab_size = 50
    with pytest.raises(UserError, match=r"run is in use by process \d+ on \S+, since 20.*; wait for its end") as caught:
        run(other, workdir)
    assert "\n" not in str(caught.value)
    assert contents(workdir) == before
    goes_on.set()
    first.join()
    for name in ("config.json", "tokenizer", "log.jsonl", "model/model.safetensors"):
        for ours in contents(done):
            if str(ours.relative_to(done)).startswith(name):
                assert (workdir / ours.relative_to(done)).read_bytes() == ours.read_bytes()
    assert not (workdir / "owner.json").exists()


def test_a_run_whose_best_checkpoint_is_gone_ends(done, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(done, workdir)
    assert json.loads((workdir / "checkpoints/protected.json").read_text()) == {"step": 2}
    shutil.rmtree(workdir / "model")
    shutil.rmtree(workdir / "checkpoints/2")
    outcome = run(make_config(**SHORT), workdir)
    assert outcome.scores["parameters"] != "step 2"
    assert (workdir / "model" / "model.safetensors").exists()
    assert "step 2 is left out: " in capfd.readouterr().out


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(UserError, match=r"run can't be written.* \(No such file or directory\)") as caught:
        run(make_config(**SHORT), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_read_only(done, small_disk):
    shutil.copy(done / "config.json", small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for workdir in (small_disk, small_disk / "new"):
        with pytest.raises(UserError, match=r"can't be used as --workdir \(Read-only file system\); choose another\."):
            run(make_config(**SHORT), workdir)


@pytest.fixture
def main(monkeypatch, capfd):
    """Call `transformer-jax train` here; returns the status and the standard error."""

    def call(*arguments):
        return cli.main(["train", *arguments]), capfd.readouterr().err

    monkeypatch.chdir(ROOT)
    return call


def program(*arguments):
    """Run `train.py` by itself: of a save that fails, Orbax leaves errors behind, which pytest would find."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "train.py", *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stderr


# ml_collections loads config files in this old way.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("room", [0, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_full_disk(main, small_disk, tmp_path, room):
    """At the start, and while saving; given room, the run goes on and ends."""
    (small_disk / "ballast").write_bytes(bytes(2**20 - room))
    workdir = small_disk / "run"
    command = [*FLAGS, *text_files(tmp_path), f"--workdir={workdir}", "--config.training.checkpoint_every=1"]
    train_py = program if room else main
    status, told = train_py(*command)
    assert status == 2
    assert told.startswith("transformer-jax: error: "), told
    assert "No space left on device" in told
    assert told.count("\n") == 1, told
    # TensorStore may still write to a folder with a temporary name, which the next run removes.
    saved = [path.name for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
    assert bool(saved) == (room == 1_000_000)
    if saved:
        subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
        assert train_py(*command) == (0, "")
        assert (workdir / "model" / "model.safetensors").exists()
