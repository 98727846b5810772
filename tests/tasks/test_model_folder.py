import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.tasks.toys import (
    SETTINGS,
    tiny_config,
    tiny_params,
    tiny_tokenizer,
    write_bundle,
    write_classifier,
    write_couplet_writer,
)
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.text_classifier import TextClassifier
from transformer_jax.tasks.couplets.generate import CoupletWriter
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.translation.translator import Translator


@pytest.fixture
def folder(tmp_path):
    return write_bundle(tmp_path / "run" / "model")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save_model(path, **changes):
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    arguments = {
        "task": "translation",
        "model_config": config,
        "params": tiny_params(config),
        "tokenizer_files": tokenizer.files(),
        "settings": SETTINGS,
        "scores": {},
    }
    save(path, **(arguments | changes))


def test_what_was_saved_is_loaded(folder):
    model = load(folder)
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    assert model.model_config == config
    assert model.tokenizer.files() == tokenizer.files()
    assert model.tokenizer.joint
    assert (model.settings.source_language, model.settings.target_language) == ("de", "en")
    assert (model.settings.decoding.beam_size, model.settings.decoding.alpha) == (2, 0.6)
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, tiny_params(config)))


@pytest.mark.parametrize(
    ("write_model", "kind"),
    [(write_bundle, Translator), (write_classifier, TextClassifier), (write_couplet_writer, CoupletWriter)],
)
def test_the_task_tells_what_a_model_is_loaded_as(tmp_path, write_model, kind):
    assert type(load(write_model(tmp_path / "model"))) is kind


def test_saving_what_was_loaded_gives_the_same_bytes(folder, tmp_path):
    model = load(folder)
    copy = tmp_path / "copy"
    save_model(
        copy,
        model_config=model.model_config,
        params=model.params,
        tokenizer_files=model.tokenizer.files(),
        settings=dataclasses.asdict(model.settings),
        scores={"bleu": 12.345678, "bleu_signature": "nrefs:1|case:mixed"},
        origin={"data": "random", "command": "pytest tests"},
    )
    assert content(copy) == content(folder)
    assert set(content(copy)) == {"config.json", "characters.txt", "model.safetensors", "README.md"}


def test_tensors_are_named_by_their_path(folder):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    params = tiny_params(tiny_config(tiny_tokenizer()))
    assert len(tensors) == len(jax.tree.leaves(params))
    kernel = params["decoder"]["layers"][0]["cross_attention"]["query"]["kernel"]
    np.testing.assert_array_equal(tensors["decoder.layers.0.cross_attention.query.kernel"], kernel)


def test_transposed_parameters_are_written_as_they_read(tmp_path):
    config = tiny_config(tiny_tokenizer())
    params = jax.tree.map(lambda x: np.asfortranarray(np.asarray(x)), tiny_params(config))
    save_model(tmp_path / "model", params=params)
    assert jax.tree.all(jax.tree.map(np.array_equal, load(tmp_path / "model").params, tiny_params(config)))


def test_the_kernel_of_the_training_machine_is_not_stored(tmp_path):
    config = dataclasses.replace(tiny_config(tiny_tokenizer()), attention_implementation="cudnn", dtype="bfloat16")
    save_model(tmp_path / "model", model_config=config)
    assert load(tmp_path / "model").model_config.attention_implementation == "xla"


def test_the_card_tells_facts_sizes_and_limits(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(load(folder).params))
    expected = (
        "translation from de to en",
        "A model folder of transformer-jax, version",
        "| data | random |",
        "| command | pytest tests |",
        "| bleu | 12.35 |",
        r"| bleu_signature | nrefs:1\|case:mixed |",
        f"| parameters | {parameters:,} (float32) |",
        "1,024 tokens",
    )
    for text in expected:
        assert text in card


def test_the_card_of_a_classifier(tmp_path):
    card = (write_classifier(tmp_path / "model", max_length=1000) / "README.md").read_text(encoding="utf-8")
    expected = (
        "# A model for text classification: bee, cat, dog\n",
        "| layers | 1 + 0 |",
        "| vocabulary | 15 source, 0 target tokens |",
        "the first 1,000 tokens",
    )
    assert [text for text in expected if text not in card] == []


def test_the_card_of_a_couplet_model(tmp_path):
    card = (write_couplet_writer(tmp_path / "model") / "README.md").read_text(encoding="utf-8")
    expected = ("# A model for Chinese couplets (对联)\n", "1,023 characters", "| layers | 1 + 1 |")
    assert [text for text in expected if text not in card] == []


def edit(path: Path, change) -> None:
    """Rewrite a JSON file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def in_config(change):
    return lambda folder: edit(folder / "config.json", change)


def in_weights(change):
    """Edit the tensors; the sha256 is made to fit, so that it is the tensors that are found wrong."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = safetensors.numpy.load_file(path)
        change(tensors)
        path.write_bytes(safetensors.numpy.save(tensors))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit(folder / "config.json", lambda config: config["sha256"].update({path.name: digest}))

    return apply


def in_vocabulary(change):
    """Edit the tokens; with a sha256 that fits, unless `change` returns False."""

    def apply(folder: Path) -> None:
        path = folder / "characters.txt"
        tokens = path.read_text(encoding="utf-8").splitlines()
        keep_digest = change(tokens) is False
        path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        if not keep_digest:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            edit(folder / "config.json", lambda config: config["sha256"].update({path.name: digest}))

    return apply


def swap_last(tokens):
    tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    return False


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data)


def in_file(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def flip_last_bit(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


TABLE = "target_embedding.table"
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "missing"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["model.safetensors", "missing"]),
    "no tokenizer": (lambda f: (f / "characters.txt").unlink(), ["characters.txt", "missing"]),
    "config is no JSON": (write("config.json", b"{"), ["config.json", "not valid JSON"]),
    "config is no UTF-8": (write("config.json", b"\xff{}"), ["config.json", "not valid JSON"]),
    "config is too deep": (write("config.json", b"[" * 100_000), ["config.json", "not valid JSON"]),
    "config is too large": (write("config.json", b" " * 16_000_001), ["config.json", "16,000,000 bytes"]),
    "config is a list": (write("config.json", b"[]"), ["config.json", "format_version"]),
    "config has NaN": (write("config.json", b'{"format_version": NaN}'), ["config.json", "NaN"]),
    "later version": (in_config(lambda c: c.update(format_version=3)), ["format_version 3"]),
    "version is true": (in_config(lambda c: c.update(format_version=True)), ["format_version True"]),
    "version is 2.0": (in_config(lambda c: c.update(format_version=2.0)), ["format_version 2.0"]),
    "of another system": (
        write("config.json", b'{"model_type": "marian"}'),
        ["format_version", "transformer-jax import"],
    ),
    "unknown field": (in_config(lambda c: c.update(colour="red")), ["config.json", "colour"]),
    "no field": (in_config(lambda c: c.pop("task")), ["config.json", "task"]),
    "unknown task": (in_config(lambda c: c.update(task="poetry")), ["config.json", "poetry", "translation"]),
    "task is a list": (in_config(lambda c: c.update(task=[])), ["config.json", "task"]),
    "unknown model field": (in_config(lambda c: c["model"].update(depth=3)), ["model.depth", "d_model"]),
    "model is a number": (in_config(lambda c: c.update(model=3)), ["config.json: model"]),
    "ill-typed size": (in_config(lambda c: c["model"].update(d_ff="8")), ["model.d_ff", "'8'", "int"]),
    "negative size": (in_config(lambda c: c["model"].update(d_ff=-8)), ["model.d_ff", "-8"]),
    "no target vocabulary": (in_config(lambda c: c["model"].update(target_vocab_size=0)), ["target_vocab_size", "0"]),
    "no divisor": (in_config(lambda c: c["model"].update(num_heads=3)), ["model.num_heads", "3"]),
    "endless layers": (
        in_config(lambda c: c["model"].update(num_encoder_layers=10**9)),
        ["num_encoder_layers is 1000000000"],
    ),
    "giant width": (in_config(lambda c: c["model"].update(d_model=2**30)), ["model.safetensors", "1073741824"]),
    "ill-typed setting": (in_config(lambda c: c["settings"].update(lowercase=1)), ["settings.lowercase", "bool"]),
    "unknown decoding": (in_config(lambda c: c["settings"]["decoding"].update(beams=1)), ["settings.decoding.beams"]),
    "an empty bad word": (
        in_config(lambda c: c["settings"].update(bad_words=[[3], []])),
        ["settings.bad_words has ()"],
    ),
    "a giant bad word": (in_config(lambda c: c["settings"].update(bad_words=[[3, 2**40]])), ["(3, 1099511627776)"]),
    "a bad word too far": (in_config(lambda c: c["settings"].update(bad_words=[[15]])), ["(15,)", "from 0 to 14"]),
    "a bad word below 0": (
        in_config(lambda c: c["settings"].update(bad_words=[[-5]])),
        ["settings.bad_words", "(-5,)"],
    ),
    "endless bad words": (
        in_config(lambda c: c["settings"].update(bad_words=[[3] * 100_000] * 3)),
        ["settings.bad_words has 3 sequences of up to 100,000 tokens"],
    ),
    "a surrogate": (in_config(lambda c: c["sha256"].update({"\ud800": "0"})), ["sha256 names '\\ud800'"]),
    "no sums": (in_config(lambda c: c.update(sha256={})), ["sha256", "model.safetensors"]),
    "file elsewhere": (in_config(lambda c: c["sha256"].update({"../x": "0"})), ["'../x'", "this folder"]),
    "another vocabulary": (in_vocabulary(swap_last), ["characters.txt", "another vocabulary"]),
    "smaller vocabulary": (in_vocabulary(lambda tokens: tokens.pop()), ["another vocabulary", "14", "15"]),
    "weights are truncated": (truncate, ["model.safetensors", "truncated or damaged"]),
    "weights are empty": (write("model.safetensors", b""), ["model.safetensors", "truncated or damaged"]),
    "giant header": (write("model.safetensors", b"\xff" * 16), ["model.safetensors", "truncated or damaged"]),
    "a bit has flipped": (flip_last_bit, ["model.safetensors", "sha256"]),
    "tensor is missing": (in_weights(lambda t: t.pop(TABLE)), [TABLE, "no tensor"]),
    "tensor is unknown": (in_weights(lambda t: t.update(more=t[TABLE])), ["unknown tensor more"]),
    "tensor is cut": (in_weights(lambda t: t.update({TABLE: t[TABLE][1:]})), [TABLE, "(14, 8)", "(15, 8)"]),
    "tensor is float64": (in_weights(lambda t: t.update({TABLE: t[TABLE].astype(np.float64)})), [TABLE, "F64"]),
    "weights have more": (in_file("model.safetensors", lambda data: data + b"x"), ["model.safetensors is larger than"]),
    "weights are endless": (lambda f: os.truncate(f / "model.safetensors", 2**42), ["model.safetensors is larger"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_refused_in_one_sentence(folder, case):
    break_it, expected = BROKEN[case]
    break_it(folder)
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert [text for text in expected if text not in message] == []
    assert "\n" not in message


CLASSIFIERS = {
    "another number of classes": (lambda c: c["settings"]["classes"].append("emu"), ["3 outputs", "4 classes"]),
    "one class": (lambda c: c["model"].update(num_classes=1), ["num_classes", "at least 2"]),
    "no classes": (lambda c: c["model"].update(num_classes=0), ["num_classes", "at least 2"]),
    "a class that is no name": (lambda c: c["settings"]["classes"].append(3), ["settings.classes", "3", "str"]),
    "another task": (lambda c: c.update(task="translation"), ["settings.classes"]),
    "unknown pooling": (lambda c: c["model"].update(pooling="max"), ["pooling", "'max'"]),
}


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_broken_classifier_is_refused_in_one_sentence(tmp_path, case):
    change, expected = CLASSIFIERS[case]
    folder = write_classifier(tmp_path / "model")
    edit(folder / "config.json", change)
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert [text for text in expected if text not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize("name", ["nowhere", "config.json"])
def test_a_path_that_is_no_folder(folder, name):
    with pytest.raises(UserError, match="not a folder"):
        load(folder / name)


def test_a_new_model_replaces_the_old_one(folder):
    before = content(folder)
    (folder / "stale.txt").write_text("of an older model", encoding="utf-8")
    write_bundle(folder, seed=1)
    after = content(folder)
    assert set(after) == set(before)
    assert after["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("fails_at", [0, 2, 4])
def test_a_failed_write_leaves_the_old_model(folder, monkeypatch, fails_at):
    before = content(folder)
    calls = []
    fsync = os.fsync

    def full_disk(descriptor):
        calls.append(descriptor)
        if len(calls) > fails_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full_disk)
        with pytest.raises(UserError, match="No space left"):
            write_bundle(folder, seed=1)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_failed_exchange_puts_the_old_model_back(folder, monkeypatch):
    before = content(folder)
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(UserError, match="Permission denied"):
            write_bundle(folder, seed=1)
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_what_is_no_model_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work", encoding="utf-8")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="not a model folder"):
            write_bundle(path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "poetry"}, "poetry"),
        ({"settings": {"langauge": "de"}}, "settings.langauge"),
        ({"settings": {"decoding": {"alpha": "big"}}}, "settings.decoding.alpha"),
    ],
)
def test_an_unloadable_model_is_not_written(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected):
        save_model(tmp_path / "model", **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("language", ["de\n\n```python\nimport os", "de ```python", "de\u2028x", "de\x1b[0m"])
def test_a_name_in_the_title_adds_nothing_to_a_readme(folder, language):
    edit(folder / "config.json", lambda config: config["settings"].update(source_language=language))
    with pytest.raises(UserError, match=r"config.json: settings has a line break"):
        load(folder)


def test_a_folder_does_not_choose_the_kernel(folder):
    def change(config):
        config["model"].update(attention_implementation="cudnn")
        del config["sha256"]["config.json"]

    edit(folder / "config.json", change)
    assert load(folder).model_config.attention_implementation == "xla"
