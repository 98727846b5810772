"""Runs that start from a model folder."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from tests.interop.marian_folders import ENGLISH, GERMAN, make_folder
from tests.tasks.toys import (
    CLASSES,
    SETTINGS,
    tiny_config,
    tiny_params,
    tiny_tokenizer,
    write_bundle,
    write_classifier,
    write_stacks,
)
from transformer_jax.config import default_config, from_config_dict
from transformer_jax.data import SpecialTokens
from transformer_jax.interop.marian import import_marian
from transformer_jax.sharding import shard_batch
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Evaluation
from transformer_jax.tasks.metrics import translation_scores
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.registry import registered
from transformer_jax.training import loop, make_evaluator, run
from transformer_jax.training.setup import Evaluator, setup
from transformer_jax.training.workdir import read_origin, task_from

SOURCES = ["abc", "cab", "bad", "dab ab", "ace", "bead", "cede", "deed"]
TARGETS = ["CBA", "BAC", "DAB", "BA BAD", "ECA", "DAEB", "EDEC", "DEED"]


@pytest.fixture
def config(tmp_path):
    """One step of nothing, on files; the sizes and the tokenizer are none that a folder here has."""
    for name, texts in (("source", SOURCES), ("target", TARGETS)):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    config = default_config()
    config.data.update(name="text", max_length=16, row_length=16, tokens_per_batch=128)
    for part in ("train", "validation"):
        config.data.update({f"{part}_{side}": str(tmp_path / side) for side in ("source", "target")})
    config.model.update(d_model=64, num_heads=8, dropout_rate=0.25)
    config.tokenizer.vocab_size = 100_000
    config.optim.update(schedule="constant", lr=0.0, warmup_steps=1)
    config.training.update(num_steps=1)
    config.decoding.update(SETTINGS["decoding"] | {"beam_size": 1})
    return config


@pytest.fixture
def unscored(monkeypatch):
    leave_unscored(monkeypatch)


def leave_unscored(monkeypatch):
    """Searching is what takes longest."""
    scores = dict.fromkeys(registered("translation").task.metrics, 1.0)
    monkeypatch.setattr(Evaluator, "__call__", lambda *_, **__: Evaluation(scores, []))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_from_a_model_and_its_score(tmp_path, config, monkeypatch):
    folder = write_bundle(tmp_path / "folder", bad_words=[[4, 5], [1]], renormalizes=True, max_source_length=64)
    config.init_from = str(folder)
    config.mesh.fsdp = 2
    outcome = run(config, tmp_path / "run")
    before, after = load(folder), load(outcome.model)
    weights = [(path / "model.safetensors").read_bytes() for path in (folder, outcome.model)]
    assert weights[0] == weights[1], "with a learning rate of 0 nothing moves"
    assert after.model_config == dataclasses.replace(before.model_config, dropout_rate=0.25)
    assert after.tokenizer.files() == before.tokenizer.files()
    assert (after.settings.bad_words, after.settings.renormalizes) == (((4, 5), (1,)), True)
    assert after.settings.max_source_length == 64

    scores = before.score(SOURCES, TARGETS)
    log_prob, tokens = sum(score.log_prob for score in scores), sum(len(score.tokens) for score in scores)
    assert outcome.scores["loss"] == pytest.approx(-log_prob / tokens, rel=1e-5)
    expected = translation_scores(before.translate(SOURCES, beam_size=1), TARGETS)
    assert {name: outcome.scores[name] for name in expected} == expected
    assert expected["chrf"] > 0

    leave_unscored(monkeypatch)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (outcome.model / "model.safetensors").unlink()  # with it, the run would be finished
    run(config, tmp_path / "run")
    assert (outcome.model / "model.safetensors").read_bytes() == weights[0], "without checkpoints it starts again"
    shutil.rmtree(folder)
    (outcome.model / "model.safetensors").unlink()
    run(config, tmp_path / "run")
    assert (outcome.model / "model.safetensors").read_bytes() == weights[0], "the folder is not needed any more"
    assert load(outcome.model).settings == after.settings
    config.init_from = ""
    with pytest.raises(UserError, match=r"holds a run with config\.init_from='.*folder', not ''"):
        run(config, tmp_path / "run")


def test_layers_are_stacked_within_the_run_only(tmp_path, config):
    config.init_from = str(write_bundle(tmp_path / "folder"))
    config.model.update(scan_layers=True, remat="dots")
    config.training.update(num_steps=2, checkpoint_every=1, average_last=2, ema_decay=0.9)
    outcome = run(config, tmp_path / "run")
    before, after = load(config.init_from), load(outcome.model)
    assert_equal(after.params, before.params)
    assert after.model_config == dataclasses.replace(before.model_config, dropout_rate=0.25)
    scores = before.score(SOURCES, TARGETS)
    log_prob, tokens = sum(score.log_prob for score in scores), sum(len(score.tokens) for score in scores)
    assert outcome.scores["loss"] == pytest.approx(-log_prob / tokens, rel=1e-5)
    config.model.scan_layers = False
    with pytest.raises(UserError, match=r"holds a run with config\.model\.scan_layers=True, not False"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize("other", ["sizes", "vocabulary"])
def test_another_model_in_the_folder_is_refused(tmp_path, config, other):
    config.init_from = str(write_bundle(tmp_path / "folder"))
    setup(from_config_dict(config), tmp_path / "run", started=0.0)
    (tmp_path / "run" / "model").mkdir()  # begun, and yet without a checkpoint
    tokenizer = tiny_tokenizer() if other == "sizes" else tiny_tokenizer("abcdf ABCDE")
    model_config = dataclasses.replace(tiny_config(tokenizer), d_ff=16 if other == "sizes" else 8)
    save(
        config.init_from,
        task="translation",
        model_config=model_config,
        params=tiny_params(model_config),
        tokenizer_files=tokenizer.files(),
        settings=SETTINGS,
        scores={},
    )
    with pytest.raises(UserError, match=r"config\.init_from: .*folder holds another model than the one that this run"):
        run(config, tmp_path / "run")


def killed(*arguments):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(tmp_path, config, unscored):
    config.init_from = str(write_bundle(tmp_path / "folder"))
    config.optim.update(lr=0.01)
    config.training.update(num_steps=6, checkpoint_every=2, eval_every=6)
    whole = run(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        batches = iter(range(5))
        patch.setattr(loop, "shard_batch", lambda *batch: shard_batch(*batch) if next(batches) < 4 else killed())
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    shutil.rmtree(tmp_path / "folder")
    parts = run(config, tmp_path / "killed")
    weights = [(outcome.model / "model.safetensors").read_bytes() for outcome in (whole, parts)]
    assert weights[0] == weights[1]
    changed = jax.tree.map(np.array_equal, load(whole.model).params, tiny_params(tiny_config(tiny_tokenizer())))
    assert not any(jax.tree.leaves(changed)), "the learning rate moves everything"
    assert (tmp_path / "whole" / "log.jsonl").read_bytes() == (tmp_path / "killed" / "log.jsonl").read_bytes()


def test_an_imported_model_keeps_its_markers_and_what_it_never_writes(tmp_path, config):
    import_marian(make_folder(tmp_path / "marian", layers=(1, 1)), tmp_path / "folder")
    config.data.update(max_length=64, row_length=64, tokens_per_batch=512)
    for side, texts in (("source", GERMAN), ("target", ENGLISH)):
        (tmp_path / side).write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    config.init_from = str(tmp_path / "folder")
    crossed, before = from_config_dict(config), load(tmp_path / "folder")
    origin = read_origin(crossed)
    task = task_from(crossed, origin)
    assert task.settings["bad_words"] == before.settings.bad_words != ((1,), (3,))
    assert task.generator.bad_words == before.settings.bad_words
    assert task.generator.special_tokens == before.tokenizer.target.special_tokens != SpecialTokens()
    scores = before.score(GERMAN, ENGLISH)
    log_prob, tokens = sum(score.log_prob for score in scores), sum(len(score.tokens) for score in scores)
    sums = make_evaluator(task, crossed).loss_sums(origin.params)
    assert sums["loss"] / sums["weight"] == pytest.approx(-log_prob / tokens, rel=1e-5)


def test_a_run_starts_from_stacks(tmp_path, config, unscored):
    folder = write_stacks(tmp_path / "folder")
    config.init_from = str(folder)
    config.tokenizer.update(kind="char", joint=False)
    config.model.update(tie_embeddings="output", output_bias=True)
    outcome = run(config, tmp_path / "run")
    before, after = load(folder), load(outcome.model)
    assert set(before.params) == {"encoder", "decoder"}
    for stack in before.params:
        assert_equal(after.params[stack], before.params[stack])
    assert not after.tokenizer.joint
    expected = dataclasses.replace(
        before.model_config,
        dropout_rate=0.25,
        tie_embeddings="output",
        output_bias=True,
        source_vocab_size=after.tokenizer.source.vocab_size,
        target_vocab_size=after.tokenizer.target.vocab_size,
    )
    assert after.model_config == expected
    assert np.std(after.params["source_embedding"]["table"]) > 0.1
    shutil.rmtree(folder)
    run(config, tmp_path / "run")
    assert_equal(load(outcome.model).params, after.params)


def classification(tmp_path, config, classes=CLASSES):
    path = tmp_path / "texts.csv"
    rows = [f"{label},{text}\n" for label in classes for text in SOURCES]
    path.write_text("".join(["label,text\n", *rows]), encoding="utf-8")
    config.task = "classification"
    config.data.update(train_source="", train_target="", validation_source="", validation_target="")
    config.data.update(train_file=str(path), validation_split="", validation_percent=30.0)
    return config


def test_a_classifier_keeps_its_tokenizer_and_sizes(tmp_path, config):
    config = classification(tmp_path, config)
    config.init_from = str(write_classifier(tmp_path / "folder"))
    crossed = from_config_dict(config)
    origin = read_origin(crossed)
    task = task_from(crossed, origin)
    assert task.tokenizer_files == tiny_tokenizer().files()
    assert_equal(origin.params, jax.device_get(tiny_params(tiny_config(tiny_tokenizer(), num_classes=3))))
    drawn = jax.eval_shape(task.init_params, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), drawn, origin.params)


@pytest.mark.parametrize(
    ("task", "write", "message"),
    [
        ("couplet", write_bundle, "names a model of task 'translation', but config.task is 'couplet'"),
        ("translation", write_classifier, "names a model of task 'classification', but config.task is 'translation'"),
        ("classification", write_stacks, "names a model of task 'transformer', but config.task is 'classification'"),
        ("poetry", write_stacks, "config.task is 'poetry'"),
        ("translation", lambda path: path, "folder is not a folder"),
        ("translation", lambda path: path.mkdir(), "folder/config.json is missing"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path, config, task, write, message):
    write(tmp_path / "folder")
    config.update(task=task, init_from=str(tmp_path / "folder"))
    config.training.metric = "loss"
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_classes_are_refused(tmp_path, config):
    config = classification(tmp_path, config, ("bee", "cat", "emu"))
    config.training.metric = "accuracy"
    config.init_from = str(write_classifier(tmp_path / "folder"))
    with pytest.raises(UserError, match=r"classes bee, cat, dog, but the data has bee, cat, emu; name a model"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_with_a_parameter_that_is_not_finite_is_refused(tmp_path, config):
    folder = tmp_path / "folder"
    config.init_from = str(write_bundle(folder))
    loaded = load(folder)
    save(
        folder,
        task=config.task,
        model_config=loaded.model_config,
        params=jax.tree.map(lambda leaf: leaf * np.nan, loaded.params),
        tokenizer_files=loaded.tokenizer.files(),
        settings=dataclasses.asdict(loaded.settings),
        scores={},
    )
    with pytest.raises(UserError, match=r"folder \(config\.init_from\) has a parameter that is not finite"):
        run(config, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.json"))
