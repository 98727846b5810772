"""Exact resume: `train.py` processes, killed or interrupted and restarted, against an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from transformer_jax.tasks.translation.sources import Numerals

ROOT = Path(__file__).resolve().parent.parent
STEPS = 60
FLAGS = [
    *("--config.data.name=text", "--config.data.max_length=48", "--config.data.row_length=48"),
    *("--config.data.tokens_per_batch=384", "--config.tokenizer.vocab_size=60"),
    *("--config.model.d_model=32", "--config.model.num_heads=2", "--config.model.d_ff=32"),
    *("--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1", "--config.model.dropout_rate=0.1"),
    *(f"--config.training.num_steps={STEPS}", "--config.training.log_every=5", "--config.training.eval_every=30"),
    *("--config.training.checkpoint_every=10", "--config.training.ema_decay=0.9"),
    *("--config.decoding.batch_size=16", "--config.decoding.max_extra_tokens=2"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `train.py` in a work folder."""
    folder = tmp_path_factory.mktemp("data")
    arguments = [sys.executable, "train.py", *FLAGS]
    for split, size in (("train", 300), ("validation", 12)):
        sides = zip(*Numerals("de", "en", split)[:size], strict=True)
        for side, sentences in zip(("source", "target"), sides, strict=True):
            path = folder / f"{split}.{side}"
            path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
            arguments.append(f"--config.data.{split}_{side}={path}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    }

    def begin(workdir):
        command = [*arguments, f"--workdir={workdir}"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    return begin


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir))
    return workdir


def finish(process, status=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status
    return output


def wait_until(condition, process):
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def arrays(workdir):
    """Every array of the last checkpoint by name, and the metadata."""
    path = workdir / "checkpoints" / str(STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the devices are those it was saved from
        flat, _ = jax.tree_util.tree_flatten_with_path(ocp.load(path, checkpointable_name="state"))
    metadata = json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    metadata["metadata"].pop("minutes", None)  # the only value that differs between runs
    metadata.pop("sha256")  # a digest of the metadata, minutes included
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in flat}, metadata


def assert_same_run(workdir, whole):
    for name in ("log.jsonl", "samples.jsonl", "config.json", "model/model.safetensors"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    (actual, metadata), (expected, expected_metadata) = arrays(workdir), arrays(whole)
    assert metadata == expected_metadata
    assert actual.keys() == expected.keys()
    kinds = {name.split("'")[1] if "'" in name else name.split(".")[1] for name in expected}
    assert {"step", "params", "opt_state", "ema_params"} <= kinds
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def test_a_run_killed_at_any_moment_goes_on_exactly(start, whole, tmp_path):
    process = start(tmp_path)
    wait_until((tmp_path / "checkpoints" / "30").exists, process)
    time.sleep(random.uniform(0.0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    assert "Resuming from step" in finish(start(tmp_path))
    assert_same_run(tmp_path, whole)


def test_an_interrupted_run_goes_on_exactly(start, whole, tmp_path):
    process = start(tmp_path)
    log = tmp_path / "log.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size > 0, process)
    process.send_signal(signal.SIGINT)
    output = finish(process, status=128 + signal.SIGINT)
    assert "rerun the command to resume" in output
    assert not (tmp_path / "model").exists()
    assert "Resuming from step" in finish(start(tmp_path))
    assert_same_run(tmp_path, whole)
