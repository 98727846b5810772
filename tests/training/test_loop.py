"""A real experiment, `configs/numerals.py`, shrunk to run from config to model in seconds."""

import dataclasses
import json
import math
import os
import signal
import time
from collections import defaultdict
from functools import partial

import jax
import numpy as np
import pytest

from configs import classification_sample, numerals
from transformer_jax.config import from_config_dict
from transformer_jax.data.packing import real_token_share
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.classification import sources as texts
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.tasks.translation.task import TranslationTask
from transformer_jax.training import loop, make_evaluator, run, stopping, usage
from transformer_jax.training.setup import Evaluator, setup


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
    load_pairs, load_texts, sizes = translation.load_pairs, texts.load_texts, {"train": 200, "validation": 9}

    def few_texts(config, split, *report):
        found, classes = load_texts(config, split, *report)
        return found[: sizes[split]], classes

    monkeypatch.setattr(translation, "load_pairs", lambda config, split: load_pairs(config, split)[: sizes[split]])
    monkeypatch.setattr(texts, "load_texts", few_texts)


@pytest.fixture
def scores(monkeypatch):
    """Replace scoring, which is slow, by a list of validation scores to come; the last one is repeated."""

    def replace(*coming):
        left = list(coming)

        def evaluate(self, params, *, final):
            score = left.pop(0) if len(left) > 1 else left[0]
            numbers = dict.fromkeys(self._task.metrics, score)
            return Evaluation(numbers, [("one", "two", "three")])

        monkeypatch.setattr(Evaluator, "__call__", evaluate)

    return replace


def small(**training):
    return shrunk(numerals.get_config(), training)


def short(**training):
    """Two evaluations, as quick as can be."""
    return small(**{"num_steps": 4, "eval_every": 2, "checkpoint_every": 2} | training)


def small_classifier(**training):
    config = classification_sample.get_config()
    config.tokenizer.kind = "word"
    config.classification.update(mask_rate=0.1, mask_loss=0.2)
    return shrunk(config, training)


def shrunk(config, training):
    config.model.update(d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
    config.tokenizer.vocab_size = 60
    config.data.update(max_length=32, row_length=32, tokens_per_batch=256)
    config.decoding.update(beam_size=2, max_extra_tokens=4, batch_size=16)
    config.optim.warmup_steps = 10
    config.training.update(num_steps=12, log_every=4, eval_every=6, checkpoint_every=3, keep_checkpoints=2)
    config.training.update(training)
    return config


def lines(workdir, name="log"):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def steps_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.is_dir())


def protected(workdir):
    return json.loads((workdir / "checkpoints" / "protected.json").read_text())["step"]


def state_of(config, workdir, step):
    """Arrays and metadata of a checkpoint, but for the time that it took."""
    opened = setup(from_config_dict(config), workdir, started=0.0)
    with opened.checkpoints as checkpoints:
        state, metadata = checkpoints.restore(step, opened.abstract_state)
    return jax.device_get(state), {name: value for name, value in metadata.items() if name != "minutes"}


def assert_same_run(config, a, b, step):
    (state_a, metadata_a), (state_b, metadata_b) = (state_of(config, workdir, step) for workdir in (a, b))
    assert metadata_a == metadata_b
    assert jax.tree.structure(state_a) == jax.tree.structure(state_b)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)
    for name in ("log", "samples"):
        assert (a / f"{name}.jsonl").read_bytes() == (b / f"{name}.jsonl").read_bytes()


def interrupt_at(monkeypatch, step, action):
    """Do something when batch number `step` is about to be used."""
    shard_batch, count = loop.shard_batch, iter(range(1, 10_000))

    def counting(batch, mesh):
        if real_token_share(batch) and next(count) == step:  # the step is compiled for a blank one
            action()
        return shard_batch(batch, mesh)

    monkeypatch.setattr(loop, "shard_batch", counting)


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of the loop catches it."""


def kill():
    raise Killed


def test_a_run_from_config_to_model(tmp_path):
    opened = setup(from_config_dict(small(num_samples=2)), tmp_path, started=time.monotonic())
    outcome = loop.train(opened)
    assert opened.train_step._cache_size() == 1, "one shape, one compilation"
    assert outcome.step == 12
    assert outcome.model == tmp_path / "model"
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        *("config.json", "tokenizer", "checkpoints", "model", "tensorboard"),
        *("identity.json", "log.jsonl", "timing.jsonl", "samples.jsonl", "finished.json"),
    }
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [
        *(("train", 4), ("evaluation", 6), ("train", 8), ("train", 12), ("evaluation", 12), ("final", 12))
    ]
    assert steps_of(tmp_path) in ([9, 12], [6, 9, 12])
    assert len(lines(tmp_path, "samples")) == 4
    first, last = (line["loss"] for line in lines(tmp_path) if line["kind"] == "evaluation")
    assert last < first < math.log(60) + 1, "it learns"
    stored = json.loads((tmp_path / "model" / "config.json").read_text())["scores"]
    assert stored == {name: value for name, value in outcome.scores.items() if name != "minutes"}
    assert lines(tmp_path)[-1] == {"step": 12, "kind": "final", **stored}
    model = load(outcome.model)
    assert load(tmp_path).settings == model.settings, "a run may stand for its model"
    task = TranslationTask(from_config_dict(small()), None)
    sources, references = zip(*task.validation, strict=True)
    # What the task says of the parameters, the stored model reproduces.
    evaluation = make_evaluator(task, task.config)(model.params, final=True)
    assert {name: outcome.scores[name] for name in evaluation.scores} == pytest.approx(evaluation.scores)
    assert model.translate(sources) == [output for _, output, _ in evaluation.samples]
    assert [reference for _, _, reference in evaluation.samples] == list(references)
    assert set(task.metrics) == {name for name, value in evaluation.scores.items() if isinstance(value, float)}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Folder of the run of a config that nothing disturbs, to be filled by the first test that needs it."""
    return defaultdict(lambda: tmp_path_factory.mktemp("run") / "whole")


@pytest.mark.parametrize(
    ("make_config", "killed_at"),
    [(small_classifier, 5), *(pytest.param(small, step, marks=pytest.mark.slow) for step in (5, 11))],
)
def test_a_killed_run_goes_on_exactly(tmp_path, whole_runs, monkeypatch, scores, make_config, killed_at):
    """Between a line of the log and an evaluation; and after both."""
    config, whole = make_config(ema_decay=0.9), whole_runs[make_config]
    if not whole.exists():
        scores(1.0, 2.0, 3.0)
        run(config, whole)
    scores(*([1.0, 2.0, 3.0] if killed_at < 7 else [1.0]))
    with monkeypatch.context() as patch:
        interrupt_at(patch, killed_at, kill)
        with pytest.raises(Killed):
            run(config, tmp_path / "killed")
    scores(*([1.0, 2.0, 3.0] if killed_at < 7 else [2.0, 3.0]))
    assert run(config, tmp_path / "killed").step == 12
    assert_same_run(config, whole, tmp_path / "killed", 12)


def test_a_stopped_run_goes_on_exactly(tmp_path, monkeypatch, scores, capsys):
    config = small(average_last=2)
    scores(1.0)
    whole = run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, partial(os.kill, os.getpid(), signal.SIGINT))
        outcome = run(config, tmp_path / "stopped")
    assert outcome[:3] == (7, {}, None)
    assert "Stopped and saved at step 7; rerun the command to resume." in capsys.readouterr().out
    assert steps_of(tmp_path / "stopped")[-1] == 7
    assert not (tmp_path / "stopped" / "model").exists()
    resumed = run(config, tmp_path / "stopped")
    assert "Resuming from step 7" in capsys.readouterr().out
    assert_same_run(config, tmp_path / "whole", tmp_path / "stopped", 12)
    weights = [(outcome.model / "model.safetensors").read_bytes() for outcome in (whole, resumed)]
    assert weights[0] == weights[1]


def test_a_finished_run_only_writes_its_model_again(tmp_path, monkeypatch, scores):
    scores(1.0)
    outcome = run(short(), tmp_path)
    weights = (outcome.model / "model.safetensors").read_bytes()
    log = (tmp_path / "log.jsonl").read_bytes()
    (outcome.model / "model.safetensors").unlink()
    interrupt_at(monkeypatch, 1, kill)  # no step is made
    assert run(short(), tmp_path).step == 4
    assert (outcome.model / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("during", "at_the_end", "expected"),
    [
        ((9.0, 5.0), (7.0, 8.0), "step 2"),  # candidates come in the order: last, best
        pytest.param((9.0, 5.0), (8.0, 7.0), "step 4", marks=pytest.mark.slow),
        pytest.param((5.0, 9.0), (1.0,), "step 4", marks=pytest.mark.slow),
    ],
)
def test_the_best_checkpoint_is_chosen(tmp_path, scores, during, at_the_end, expected):
    config = short(metric="bleu", keep_checkpoints=1, checkpoint_every=1)
    scores(*during, *at_the_end)
    outcome = run(config, tmp_path)
    assert outcome.scores["parameters"] == expected
    assert steps_of(tmp_path) == [2, 4]  # 2 was the best when 4 was saved
    state, _ = state_of(config, tmp_path, int(expected.split()[1]))
    assert protected(tmp_path) == (4 if during[0] < during[1] else 2)
    stored = load(outcome.model).params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(stored), state.params)


def test_a_lower_loss_is_better(tmp_path, scores):
    scores(3.0, 2.0, 1.0)
    run(short(metric="loss"), tmp_path / "falls")
    scores(2.0, 3.0, 1.0)
    run(short(metric="loss"), tmp_path / "rises")
    assert [protected(tmp_path / name) for name in ("falls", "rises")] == [4, 2]


def test_average_of_the_last_checkpoints(tmp_path, scores):
    config = short(metric="bleu", average_last=3, keep_checkpoints=1, checkpoint_every=1)
    scores(1.0, 2.0, 3.0, 4.0)
    outcome = run(config, tmp_path)
    assert outcome.scores["parameters"] == "mean of the 3 checkpoints to step 4"
    assert steps_of(tmp_path)[-3:] == [2, 3, 4]
    parts = [state_of(config, tmp_path, step)[0].params for step in (2, 3, 4)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *parts)
    stored = jax.device_get(load(outcome.model).params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), stored, mean)


def test_the_moving_average_is_what_is_written(tmp_path, scores):
    config = short(ema_decay=0.9)
    scores(1.0)
    outcome = run(config, tmp_path)
    state, _ = state_of(config, tmp_path, 4)
    stored = jax.device_get(load(outcome.model).params)
    jax.tree.map(np.testing.assert_array_equal, stored, state.ema_params)
    assert not np.array_equal(jax.tree.leaves(state.params)[0], jax.tree.leaves(state.ema_params)[0])


def test_patience(tmp_path, scores):
    config = small(metric="bleu", num_steps=100, eval_every=2, checkpoint_every=2, patience=2)
    scores(1.0, 3.0, 2.0, 3.0)
    outcome = run(config, tmp_path)
    assert outcome.step == 8, "two evaluations after the best, at step 4, none was better"
    assert (tmp_path / "model").is_dir()
    assert run(config, tmp_path).step == 8, "a run out of patience stays so"


def test_patience_lasts_while_the_loss_falls(tmp_path, monkeypatch):
    losses = iter([9.0, 8.0, 7.0, 7.0, 7.0, 7.0, 7.0])
    evaluate = lambda self, params, *, final: Evaluation({"bleu": 0.0, "loss": next(losses)}, [("a", "b", "c")])  # noqa: E731
    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    config = small(metric="bleu", num_steps=100, eval_every=2, checkpoint_every=2, patience=2)
    assert run(config, tmp_path).step == 10, "the loss fell until step 6, at a BLEU of 0"


def test_time_limit(tmp_path, scores, monkeypatch):
    config = small(num_steps=10_000, max_minutes=30.0)
    scores(1.0)
    seconds = iter(range(0, 10**6, 100))  # each look at the clock comes 100 s after the one before
    clock = dataclasses.make_dataclass("Clock", [])()
    clock.monotonic = lambda: float(next(seconds))
    for module in (loop, stopping, usage):
        monkeypatch.setattr(module, "time", clock)
    outcome = run(config, tmp_path)
    assert 0 < outcome.step < 20
    assert steps_of(tmp_path)[-1] == outcome.step
    assert (outcome.model / "model.safetensors").is_file()


@pytest.mark.slow
def test_accumulation_makes_one_update_of_a_batch(tmp_path, scores):
    config = small(num_steps=4, log_every=1)
    config.optim.accumulate_steps = 2
    config.data.tokens_per_batch = 512
    config.model.dropout_rate = 0.0
    scores(1.0)
    run(config, tmp_path / "parts")
    config.optim.accumulate_steps = 1
    run(config, tmp_path / "whole")
    for part, whole in zip(lines(tmp_path / "parts"), lines(tmp_path / "whole"), strict=True):
        texts = {name for name, value in whole.items() if isinstance(value, str)}
        assert {name: part.pop(name) for name in texts} == {name: whole.pop(name) for name in texts}
        assert part == pytest.approx(whole, rel=1e-4)


def test_a_divergent_run_leaves_its_last_good_checkpoint(tmp_path, scores):
    config = small(log_every=100, keep_checkpoints=1, checkpoint_every=2)
    config.optim.update(name="sgd", schedule="constant", lr=1e30, warmup_steps=1)
    scores(1.0)
    with pytest.raises(UserError, match=r"The (loss|gradient) became (nan|inf) by step \d+; lower config\.optim\.lr"):
        run(config, tmp_path)
    assert not (tmp_path / "model").exists()
    for step in steps_of(tmp_path):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state_of(config, tmp_path, step)[0]))


def test_parameters_that_are_finite_but_huge_are_named_as_divergence(tmp_path):
    config = small(num_steps=1, eval_every=1)
    config.optim.update(name="lion", schedule="constant", lr=3e38, warmup_steps=1)
    with pytest.raises(UserError, match=r"probabilities became NaN by step 1; lower config\.optim\.lr"):
        run(config, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("training", {"metric": "blue"}, r"config\.training\.metric is 'blue', but must be one of loss, .*bleu"),
        ("training", {"log_every": 0}, r"config\.training\.log_every is 0, but must be at least 1"),
        ("training", {"eval_every": -1}, r"config\.training\.eval_every is -1"),
        ("training", {"num_steps": 0}, r"config\.training\.num_steps is 0"),
        ("optim", {"accumulate_steps": 0}, r"config\.optim\.accumulate_steps is 0"),
        ("optim", {"schedule": "none"}, r"config\.optim\.schedule is 'none', but must be one of noam"),
        ("decoding", {"beam_size": 0}, r"config\.decoding\.beam_size is 0"),
        ("mesh", {"data": 3}, r"config\.mesh is data=3.*device count of 8"),
        ("model", {"num_heads": 3}, r"config\.model\.num_heads is 3"),
        ("data", {"tokens_per_batch": 31}, r"config\.data\.tokens_per_batch is 31, but a row may take 32"),
        ("tokenizer", {"max_texts": -1}, r"config\.tokenizer\.max_texts is -1, but must be at least 0"),
        ("tokenizer", {"joint": False}, r"config\.model\.tie_embeddings is 'all'"),
        ("data", {"source_language": "xx"}, r"config\.data\.source_language is 'xx'"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, group, values, message):
    config = small()
    config[group].update(values)
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mended_config_may_take_the_folder(tmp_path, scores, monkeypatch):
    other = short()
    other.seed = 1
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, kill)  # before the first checkpoint
        with pytest.raises(Killed):
            run(other, tmp_path)
    scores(1.0)
    assert run(short(), tmp_path).step == 4
    with pytest.raises(UserError, match=r"holds a run with config\.seed=0, not 1"):
        run(other, tmp_path)


def test_norms_by_layer_are_logged(tmp_path, scores):
    scores(1.0)
    run(short(log_norms=True, log_every=1), tmp_path)
    trained = [line for line in lines(tmp_path) if line["kind"] == "train"]
    assert len(trained) == 4
    for line in trained:
        norms = {name: value for name, value in line.items() if name.startswith("grad_norm/")}
        assert {"grad_norm/encoder.0.self_attention", "grad_norm/decoder.0.cross_attention"} < set(norms)
        assert math.hypot(*norms.values()) == pytest.approx(line["grad_norm"], rel=1e-5)
        assert {name.partition("/")[2] for name in line if name.startswith("param_norm/")} == {
            name.partition("/")[2] for name in norms
        }
