"""Folders of runs, written by hand and by a tiny training."""

import json

from configs import classification_sample
from transformer_jax.config import Config, DataConfig, OptimConfig, TrainingConfig
from transformer_jax.tasks.classification import sources as texts
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


def train_tiny(folder, monkeypatch):
    """A real run of six steps of a tiny classifier; returns its outcome."""
    load = texts.load_texts

    def load_few(config, split, *report):
        found, classes = load(config, split, *report)
        return found[: {"train": 200, "validation": 9}[split]], classes

    monkeypatch.setattr(texts, "load_texts", load_few)
    config = classification_sample.get_config()
    config.tokenizer.kind = "word"
    config.tokenizer.vocab_size = 60
    config.model.update(d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, num_decoder_layers=1)
    config.data.update(max_length=32, row_length=32, tokens_per_batch=256)
    config.training.update(num_steps=6, log_every=2, eval_every=2, checkpoint_every=2, max_minutes=0)
    return run(config, folder)
