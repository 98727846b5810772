"""All that the folders of runs and models say."""

import json
import shutil
import subprocess
import sys

import jax
import pytest
import safetensors.numpy

from tests.experiments.folders import evaluations, write_run
from tests.tasks.toys import write_bundle, write_classifier, write_couplet_writer, write_stacks
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.experiments.info import as_text, describe
from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params
from transformer_jax.system import UserError
from transformer_jax.system.ownership import Ownership


def number_of_weights(folder):
    return sum(tensor.size for tensor in safetensors.numpy.load_file(folder / "model.safetensors").values())


def rows(text):
    """Section to names and values."""
    found, section = {}, None
    for line in text.splitlines()[2:]:
        if line and not line.startswith(" "):
            section = found.setdefault(line, {})
        elif line.strip() and len(line.split(None, 1)) == 2:
            name, value = line.split(None, 1)
            section[name] = value
    return found


@pytest.mark.parametrize("write", [write_bundle, write_classifier, write_couplet_writer, write_stacks])
def test_models(write, tmp_path):
    folder = write(tmp_path / "model")
    found = describe(str(folder))
    stored = json.loads((folder / "config.json").read_text("utf-8"))
    assert (found["kind"], found["state"], found["problems"]) == ("model", "complete", [])
    assert found["task"] == stored["task"]
    assert found["model"].pop("parameters") == number_of_weights(folder)
    assert found["model"] == stored["model"]
    assert found["scores"] == stored["scores"]
    assert json.loads(json.dumps(found["settings"])) == stored["settings"]
    assert found["versions"]["package_version"] == stored["package_version"]
    assert found["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    json.dumps(found)


def test_a_model_that_lacks_a_file(tmp_path):
    folder = write_bundle(tmp_path / "model")
    (folder / "README.md").unlink()
    found = describe(folder)
    assert found["state"] == "incomplete"
    assert found["problems"] == [f"{folder}/README.md is missing; copy the model again from its origin."]


def test_a_damaged_model(tmp_path):
    folder = write_bundle(tmp_path / "model")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"model/config\.json is not valid JSON"):
        describe(folder)


def test_a_run_with_its_model(trained):
    folder, outcome = trained
    found = describe(folder)
    assert (found["kind"], found["state"], found["task"], found["owner"]) == ("run", "finished", "classification", {})
    assert (found["progress"]["step"], found["progress"]["checkpoints"][-1]) == (6, 6)
    assert found["progress"]["memory_gb"] > 0
    assert found["model"]["parameters"] == number_of_weights(folder / "model")
    assert found["scores"]["accuracy"] == outcome.scores["accuracy"]
    assert found["config"] == json.loads((folder / "config.json").read_text())
    identity = json.loads((folder / "identity.json").read_text())
    assert found["data"]["classes"] == identity["classes"]
    assert found["data"]["training_records"] == 200
    assert found["versions"]["of_model"] == found["versions"]["package_version"] == identity["package_version"]
    assert found["files"]["config.json"] == (folder / "config.json").stat().st_size
    sizes = [path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    assert found["files"]["checkpoints/"] == sum(sizes)
    assert found["problems"] == []


def test_the_model_of_a_run_is_known_before_it_is_written(trained, tmp_path):
    folder, _ = trained
    whole = describe(folder)["model"]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "model")
    (copy / "finished.json").unlink()
    found = describe(copy)
    assert found["state"] == "stopped"
    assert found["model"] == whole


def test_sizes_of_a_translator_to_come(tmp_path):
    folder = write_run(tmp_path / "run", evaluations(10.0))
    pair = train_pair("char", ["abc"], ["de"], vocab_size=100, joint=False)
    for name, content in pair.files().items():
        (folder / "tokenizer" / name).write_bytes(content)
    sizes = {"source_vocab_size": pair.source.vocab_size, "target_vocab_size": pair.target.vocab_size}
    assert sizes["source_vocab_size"] != sizes["target_vocab_size"]
    config = json.loads((folder / "config.json").read_text())
    config["model"]["tie_embeddings"] = "output"
    (folder / "config.json").write_text(json.dumps(config))
    found = describe(folder)["model"]
    _, params = abstract_params(Seq2Seq, ModelConfig(tie_embeddings="output", **sizes))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_an_owner_is_named_while_it_lives(tmp_path):
    folder = write_run(tmp_path / "run", evaluations(10.0))
    owner = Ownership(folder)
    owner.acquire()
    found = describe(folder)
    assert found["state"] == "running"
    assert set(found["owner"]) == {"host", "pid", "since"}
    owner.release()
    assert describe(folder)["owner"] == {}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", b"{", "config.json can't be read"),
        ("config.json", b'{"task": "translation", "optim": {"speed": 1}}', "optim.speed is not a field"),
        ("identity.json", b"\xff", "identity.json can't be read"),
        ("log.jsonl", b"loss 3\n", "log.jsonl: line 1"),
        ("tokenizer/characters.txt", b"\xff", "characters.txt"),
        ("init_from.json", b'{"model": {"d_model": "big"}}', "init_from.json: model.d_model"),
        ("model/config.json", b"{}", "config.json has no field format_version"),
    ],
)
def test_what_is_damaged_is_told_and_the_rest_shown(tmp_path, name, content, expected):
    folder = write_run(tmp_path / "run", evaluations(10.0))
    (folder / "tokenizer" / "characters.txt").write_bytes(
        train_pair("char", ["a"], [], 9, True).files()["characters.txt"]
    )
    (folder / "model").mkdir(exist_ok=True) if name.startswith("model") else None
    assert describe(folder)["problems"] == []
    (folder / name).write_bytes(content)
    found = describe(folder)
    (sentence,) = found["problems"]
    assert expected in sentence
    assert sentence.endswith(".")
    assert as_text(found, 80).startswith(f"{folder}\na run")


def test_neither_run_nor_model(tmp_path):
    (tmp_path / "file").write_text("")
    for path, expected in [
        (tmp_path, "is neither a run nor a model folder; transformer-jax runs"),
        (tmp_path / "nowhere", r"can't be read \(No such file or directory\)"),
        (tmp_path / "file", r"can't be read \(Not a directory\)"),
    ]:
        with pytest.raises(UserError, match=expected):
            describe(path)


def test_buckets(bucket, tmp_path):
    from tests.bucket import Bucket
    from transformer_jax.system.files import as_path

    write_bundle(as_path("gs://bucket/model"))
    local = describe(write_bundle(tmp_path / "model"))
    remote = describe("gs://bucket/model")
    assert remote | {"path": ""} == local | {"path": ""}
    Bucket.broken = RuntimeError("401: log in")
    with pytest.raises(UserError, match=r"gs://bucket/model cannot be read \(401: log in\)"):
        describe("gs://bucket/model")


def test_the_text_shows_what_is_not_the_default(trained):
    folder, _ = trained
    found = describe(folder)
    text = as_text(found, 80)
    assert max(map(len, text.splitlines()[1:])) <= 80
    assert text.startswith(f"{folder}\na run of the task classification, finished\n")
    assert as_text(found, 20).startswith(f"{folder}\n"), "it can be copied"
    shown = rows(text)
    config = shown["config, where it is not the default"]
    assert config["model.d_model"] == "16"
    assert config["training.metric"] == "accuracy"
    assert "model.norm_first" in config
    assert "model.positions" not in config
    assert shown["model"]["parameters"] == f"{found['model']['parameters']:,}"
    assert "num_decoder_layers" not in shown["model"], "a classifier has no decoder"
    assert shown["progress"]["step"] == "6 of 6"
    assert shown["files"]["log.jsonl"].endswith(("bytes", "kB"))
    assert "classes" in shown["data"]


def test_no_device_is_started(trained):
    folder, _ = trained
    code = (
        "from transformer_jax.experiments.info import as_text, describe\n"
        f"as_text(describe({str(folder)!r}), 80)\n"
        "from jax._src import xla_bridge; print(xla_bridge._backends)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
