"""Folders of runs, written by hand and by a tiny training."""

import json

from tests.reliability import tiny_run
from transformer_jax.config import Config, DataConfig, OptimConfig, TrainingConfig
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.training import run


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def evaluations(*scores, metric="bleu", every=100):
    """Lines of evaluations, one for each score, with losses from 2 on."""
    return [
        {"step": every * number, "kind": "evaluation", "loss": 1.0 + 1.0 / number, metric: score}
        for number, score in enumerate(scores, 1)
    ]


def training(*losses, every=50):
    return [{"step": every * number, "kind": "train", "loss": loss} for number, loss in enumerate(losses, 1)]


def write_run(folder, log=(), timing=(), *, task="translation", metric="bleu", num_steps=400, lr=1.0, data=None):
    """The folder of a run that has stopped, or of an empty one if it has no log."""
    folder.mkdir(parents=True)
    config = Config(
        task=task,
        data=data or DataConfig(),
        optim=OptimConfig(lr=lr),
        training=TrainingConfig(metric=metric, num_steps=num_steps),
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    if log:
        write_lines(folder / "log.jsonl", log)
    if timing:
        write_lines(folder / "timing.jsonl", timing)
    return folder


def train_tiny(folder, monkeypatch, **optim):
    """A real run of six steps; returns its outcome."""
    monkeypatch.setattr(translation, "load_pairs", tiny_run.load_few)
    config = tiny_run.make_config(num_steps=6, eval_every=2, log_every=2, checkpoint_every=2, metric="loss")
    config.optim.update(optim)
    return run(config, folder)
