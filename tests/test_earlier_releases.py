"""Runs and model folders of earlier releases keep working.

`fixtures/0.1.0/TASK.tar.xz` was made by the last commit before the modules moved. It holds a run that SIGTERM stopped
at step 4 of 8, the log of the same run undisturbed, the model that run wrote, and what that model answered.
"""

import json
import tarfile
from pathlib import Path

import pytest

import transformer_jax
from transformer_jax.config import default_config, from_config_dict, read_config

FIXTURES = Path(__file__).resolve().parent / "fixtures"
TASKS = ("translation", "classification", "couplet")


def config_of(task):
    """The config that the fixtures were made with."""
    config = default_config()
    config.task = task
    config.model.update(d_model=16, d_ff=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    config.model.update(dropout_rate=0.1, norm_first=True)
    config.optim.update(schedule="cosine", lr=3e-3, warmup_steps=2)
    config.training.update(num_steps=8, log_every=2, eval_every=4, checkpoint_every=4, num_samples=1)
    config.training.update(ema_decay=0.9, keep_checkpoints=1)
    config.data.update(tokens_per_batch=512, max_length=32, row_length=32)
    config.decoding.update(beam_size=2, max_extra_tokens=4)
    if task == "translation":
        config.data.update(name="numerals", max_length=64, row_length=64, tokens_per_batch=1024)
        config.tokenizer.update(vocab_size=80, max_texts=2000)
        config.training.metric = "loss"
    if task == "classification":
        config.data.name = "headlines"
        config.tokenizer.vocab_size = 120
        config.classification.update(mask_rate=0.2, mask_loss=0.2)
        config.training.metric = "accuracy"
    if task == "couplet":
        config.data.name = "antitheses"
        config.tokenizer.kind = "char"
        config.training.metric = "loss"
        config.couplet.rules = "length,punctuation,distinct"
    return config


@pytest.fixture(params=TASKS)
def run_folder(request, tmp_path):
    with tarfile.open(FIXTURES / "0.1.0" / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_model_folder_answers_as_it_did(run_folder):
    model = transformer_jax.load(run_folder / "model_written")
    said = json.loads((run_folder / "says.json").read_text(encoding="utf-8"))
    if run_folder.name == "translation":
        assert model.translate(["drei", "siebenhundertzwölf", "elf"]) == said
    if run_folder.name == "couplet":
        assert model.reply(["春风来", "大江流日夜"]) == said
    if run_folder.name == "classification":
        for answer, (label, probabilities) in zip(
            model.classify(["Snow closes the road", "Shares fall"]), said, strict=True
        ):
            assert answer.label == label
            assert answer.probabilities == pytest.approx(probabilities, rel=1e-4)


def test_a_sentencepiece_model_normalizes_as_it_did(run_folder):
    if run_folder.name != "translation":
        return
    model = transformer_jax.load(run_folder / "model_written")
    for tokenizer in (model.tokenizer.source, model.tokenizer.target):
        assert tokenizer.encode("ｅｌｆ，  ²") == tokenizer.encode("elf, 2")
    assert model.tokenizer.files()["tokenizer.model"] == (run_folder / "model_written/tokenizer.model").read_bytes()


def test_settings_are_where_this_release_keeps_them(run_folder):
    stored = json.loads((run_folder / "model_written" / "config.json").read_text(encoding="utf-8"))
    assert stored["format_version"] == 1
    settings = transformer_jax.load(run_folder / "model_written").settings
    if run_folder.name == "classification":
        assert (settings.text_columns, settings.label_column) == (("text",), "label")
        return
    rules = stored["settings"]["decoding"]["rules"]
    assert not hasattr(settings.decoding, "rules")
    assert getattr(settings, "rules", rules) == rules
    stored["settings"]["decoding"]["max_length"] = 7  # without the end of sentence, which release 0.1.0 did not count
    (run_folder / "model_written" / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    assert transformer_jax.load(run_folder / "model_written").settings.decoding.max_length == 8


def test_the_config_of_a_run_is_upgraded(run_folder):
    config = read_config(str(run_folder / "config.json"))
    assert config == from_config_dict(config_of(run_folder.name))


def test_a_run_resumes_and_ends_as_if_undisturbed(run_folder):
    assert not (run_folder / "model").exists()
    outcome = transformer_jax.run(config_of(run_folder.name), run_folder)
    assert outcome.step == 8
    *now, final = lines(run_folder / "log.jsonl")
    undisturbed = lines(run_folder / "undisturbed.jsonl")
    assert (final["step"], final["kind"]) == (8, "final")  # 0.1.0 did not log it
    assert [(line["step"], line["kind"]) for line in now] == [(line["step"], line["kind"]) for line in undisturbed]
    for line, expected in zip(now, undisturbed, strict=True):
        if line["kind"] == "train":
            del line["kind"], expected["kind"]
            assert line == pytest.approx(expected, rel=1e-4)
        else:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert (run_folder / "model" / "model.safetensors").exists()
