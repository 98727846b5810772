"""A run saved on eight devices resumes on any other number of them."""

import itertools
import time

import jax
import numpy as np
import pytest

from configs import numerals
from transformer_jax.config import from_config_dict
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.training import loop
from transformer_jax.training.evaluation import params_to_evaluate
from transformer_jax.training.setup import setup
from transformer_jax.training.step import Progress

DEVICES = jax.devices()


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    load_pairs, sizes = translation.load_pairs, {"train": 120, "validation": 9}
    monkeypatch.setattr(translation, "load_pairs", lambda config, split: load_pairs(config, split)[: sizes[split]])


def open_run(workdir, monkeypatch, devices, **mesh):
    config = numerals.get_config()
    config.model.update(d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
    config.tokenizer.vocab_size = 60
    config.data.update(max_length=32, row_length=32, tokens_per_batch=7 * 32)
    config.mesh.update(mesh)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "devices", lambda: DEVICES[:devices])
        return setup(from_config_dict(config), workdir, started=time.monotonic())


def seen(run, progress):
    """Loss on the validation data, and the rows of the next ten batches that hold examples."""
    state, progress = loop._restore(run) if progress is None else progress
    sums = run.evaluator.loss_sums(params_to_evaluate(state))
    batches = [batch for batch, _ in itertools.islice(run.batches.iterate(progress.position), 10)]
    return sums["loss"] / sums["weight"], [[field[:7] for field in batch] for batch in batches]


def test_evaluation_and_batches_stay_the_same(tmp_path, monkeypatch):
    first = open_run(tmp_path, monkeypatch, 8, data=2, fsdp=2, tensor=2)
    state = first.init_state({})
    state = state._replace(step=state.step + 1)
    first.clock.minutes_before = 30.0
    progress = Progress(best_step=1)
    _, progress.position = next(first.batches.iterate())
    with first.checkpoints:
        loop._save(first, state, 1, progress)
    loss, batches = seen(first, (state, progress))
    assert len({str(batch) for batch in batches}) == 10
    for devices, mesh in ((1, {"data": 1}), (2, {"data": 1, "fsdp": 2}), (4, {"data": 2, "tensor": 2})):
        run = open_run(tmp_path, monkeypatch, devices, **mesh)
        with run.checkpoints:
            loss_here, batches_here = seen(run, None)
        assert run.clock.minutes_before >= 30
        assert run.stop.saved_step == 1
        assert 1 in run.checkpoints.preserved(range(1, 100)), "the best one is protected"
        assert loss_here == pytest.approx(loss, rel=1e-6)
        for batch, expected in zip(batches_here, batches, strict=True):
            jax.tree.map(np.testing.assert_array_equal, batch, expected)
