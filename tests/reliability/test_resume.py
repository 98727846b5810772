"""Promises: a run that is killed at any moment and resumed equals one that is not; no example twice or left out."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.distributed.launch import ROOT
from tests.reliability.tiny_run import make_config
from transformer_jax.config import from_config_dict
from transformer_jax.data.packing import collate_texts
from transformer_jax.data.pipeline import Batches, Position
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.training import loop
from transformer_jax.training.evaluation import choose
from transformer_jax.training.setup import Evaluator, setup
from transformer_jax.training.step import init_state, train_step
from transformer_jax.training.stopping import Clock


def start(workdir, cache, num_steps):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-m", "tests.reliability.tiny_run", str(workdir), str(num_steps)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def newest(workdir):
    folder = workdir / "checkpoints"
    return (
        max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0) if folder.exists() else 0
    )


def kill_at_random_moments(tmp_path, kills, num_steps):
    """Kill a run within a fraction of a second after it has saved something new, often while it saves."""
    cache, whole, killed = (tmp_path / name for name in ("cache", "whole", "killed"))
    assert start(whole, cache, num_steps).wait() == 0
    seen = 0
    for _ in range(kills):
        process = start(killed, cache, num_steps)
        while newest(killed) <= seen and process.poll() is None:
            time.sleep(0.002)
        time.sleep(random.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break  # it was done
        seen = newest(killed)
    assert start(killed, cache, num_steps).wait() == 0
    for name in ("log.jsonl", "model/model.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (killed / "owner.json").exists()


def test_a_run_killed_at_three_moments_goes_on_exactly(tmp_path):
    kill_at_random_moments(tmp_path, 3, num_steps=10)


@pytest.mark.soak
def test_a_run_killed_at_fifty_moments_goes_on_exactly(tmp_path):
    kill_at_random_moments(tmp_path, 50, num_steps=60)


def batches_of(count=100):
    encode = lambda records: [(np.arange(1 + record % 7, dtype=np.int32), np.zeros(1, np.int32)) for record in records]  # noqa: E731
    options = {"batching": "pack", "tokens_per_batch": 32, "row_length": 8, "bucket_lengths": (), "max_length": 8}
    return Batches(list(range(count)), encode, collate_texts, **options, window_size=40)


def test_no_example_is_repeated_or_left_out_across_resumes():
    """Whatever the batches after which it stops; the records of each batch are those that are told of."""
    position, seen = Position(), []
    while position.epoch < 2:
        batches = batches_of()
        for _, (_, following) in zip(range(random.randint(1, 5)), batches.iterate(position, epochs=2), strict=False):
            seen.append((position.epoch, batches.records_at(position)))
            position = following
    for epoch in (0, 1):
        assert sorted(record for at, records in seen if at == epoch for record in records) == list(range(100))


def loss_of(params, batch, key):
    return {"loss": jnp.sum(params["a"] * batch), "weight": jnp.asarray(1.0)}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_is_skipped(bad):
    optimizer = optax.adam(0.1)
    state = init_state({"a": jnp.ones(2)}, optimizer, ema=True)
    update = jax.jit(
        lambda state, batch: train_step(
            state, batch, loss_fn=loss_of, optimizer=optimizer, seed=0, ema_decay=0.9, skip_nonfinite=True
        )
    )
    after, sums = update(state, jnp.asarray([1.0, bad]))
    assert int(after.step) == 1
    assert float(sums["nonfinite"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after[1:], state[1:])
    after, sums = update(state, jnp.ones(2))
    assert float(sums["nonfinite"]) == 0
    assert not np.array_equal(after.params["a"], state.params["a"])


def evaluation(value):
    return Evaluation({"loss": value}, [])


def test_a_candidate_that_is_gone_or_not_finite_is_left_out():
    def gone():
        raise UserError("It is gone.")

    reported = []
    candidates = {"gone": gone, "bad": lambda: {"a": jnp.asarray(jnp.nan)}, "good": lambda: {"a": jnp.asarray(1.0)}}
    choice = choose(
        candidates, lambda _: evaluation(1.0), lambda _: 1.0, Clock(0.0, 0.0), lambda *told: reported.append(told)
    )
    assert choice.name == "good"
    assert [told[1] for told in reported[:2]] == ["It is gone.", "a parameter is not finite"]
    with pytest.raises(UserError, match="no sound parameters left"):
        choose({"gone": gone}, lambda _: evaluation(1.0), lambda _: 1.0, Clock(0.0, 0.0), lambda *told: None)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_numbers_that_are_not_finite_are_told_and_never_saved(tmp_path, few_records, monkeypatch, policy):
    """From the third step on. A parameter that is not finite is noticed before any loss is."""
    monkeypatch.setattr("transformer_jax.training.loop.MAX_SKIPPED", 2)
    monkeypatch.setattr(Evaluator, "__call__", lambda self, params, final: evaluation(1.0))
    config = make_config(num_steps=20, nonfinite=policy, metric="loss", patience=0, log_every=20, checkpoint_every=5)
    made = setup(from_config_dict(config), tmp_path, started=0.0)
    real, calls = made.train_step, []

    def breaking(state, batch, values):
        state, sums = real(state, batch, values)
        calls.append(batch)
        return state, sums | ({"nonfinite": 1.0, "loss": jnp.nan} if len(calls) >= 3 else {})

    breaking.lower = real.lower
    made.train_step = breaking
    expected = {
        "stop": r"The loss became nan by step 3; lower .* records",
        "skip": r"by step 4, as in each of the last 2",
    }
    with pytest.raises(UserError, match=expected[policy]):
        loop.train(made)
    told = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told if line["kind"] == "nonfinite"] == ([3] if policy == "stop" else [3, 4])
    assert all(line["records"] for line in told)
    assert not (tmp_path / "model").exists()


def test_the_learning_rate_in_the_log_is_that_of_the_updates(tmp_path, few_records):
    """A skipped step is no update, and the schedule waits for it."""
    made = setup(from_config_dict(make_config(num_steps=4, nonfinite="skip", log_every=1)), tmp_path, started=0.0)
    real, calls = made.train_step, []

    def breaking(state, batch, values):
        state, sums = real(state, batch, values)
        calls.append(batch)
        return state, sums | ({"nonfinite": 1.0, "loss": jnp.nan} if len(calls) == 2 else {})

    breaking.lower = real.lower
    made.train_step = breaking
    loop.train(made)
    told = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    expected = [float(made.schedule(count)) for count in (0, 0, 1, 2)]
    assert len(set(expected)) == 3
    assert [line["lr"] for line in told if line["kind"] == "train"] == pytest.approx(expected)


def test_a_parameter_that_is_not_finite_is_not_saved(tmp_path, few_records):
    """As after an update that was too large, before any loss tells of it."""
    config = make_config(num_steps=1, eval_every=1)
    made = setup(from_config_dict(config), tmp_path, started=0.0)
    real = made.train_step

    def breaking(state, batch, values):
        state, sums = real(state, batch, values)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params)), sums

    breaking.lower = real.lower
    made.train_step = breaking
    with pytest.raises(UserError, match="A parameter is not finite after step 1, which is not saved"):
        loop.train(made)
    assert newest(tmp_path) == 0
