"""Promises 5 and 13: a damaged file of a model folder is named; opening what a stranger made is safe and bounded."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax import export

from tests.tasks.toys import CLASSES, write_bundle, write_classifier
from transformer_jax.config import Config, read_config
from transformer_jax.data import readers
from transformer_jax.data.tokenizers import tokenizer_from_files
from transformer_jax.interop import stablehlo_reader
from transformer_jax.interop.marian import import_marian
from transformer_jax.interop.stablehlo_export import export_stablehlo
from transformer_jax.interop.stablehlo_reader import ExportError
from transformer_jax.interop.torch_transformer import import_torch
from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params
from transformer_jax.system import UserError, files
from transformer_jax.system.files import CHECKSUMS_FILE, write_checksums
from transformer_jax.tasks.model_folder import check_savable, load
from transformer_jax.training.checkpoint import Checkpoints, DamagedCheckpoint
from transformer_jax.training.workdir import find_origin

FILES = ("config.json", "characters.txt", "model.safetensors", "README.md")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = write_bundle(tmp_path_factory.mktemp("sound") / "model")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(sound, tmp_path):
    (tmp_path / "model").mkdir()
    for name, content in sound.items():
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def flipped(content, place):
    position = int(place * (len(content) - 1))
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGE = {
    "deleted": None,
    "emptied": lambda content: b"",
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\n",
    **{f"bit at {place:.0%}": lambda content, place=place: flipped(content, place) for place in (0, 0.2, 0.5, 0.8, 1)},
}


@pytest.mark.parametrize("size", [2**64 - 1, 2**45, 2**36])
def test_a_header_larger_than_its_file(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged in its header"):
        load(folder)


def test_a_header_that_is_too_deep(folder):
    (folder / "model.safetensors").write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5)
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged in its header"):
        load(folder)


def test_shapes_of_a_giant_in_a_small_file(folder):
    values = json.loads((folder / "config.json").read_bytes())
    values["model"]["d_ff"] = 2**31 - 1
    (folder / "config.json").write_text(json.dumps(values))
    flat = traverse_util.flatten_dict(abstract_params(Seq2Seq, ModelConfig(**values["model"]))[1])
    header = json.dumps(
        {
            ".".join(map(str, key)): {"dtype": "F32", "shape": leaf.shape, "data_offsets": [0, 4]}
            for key, leaf in flat.items()
        }
    ).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_model_folder_is_named(folder, name, damage):
    path = folder / name
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match=re.escape(name)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_every_digit_of_a_config_counts(folder):
    """Also those that leave it a valid one."""
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text(content.replace('"beam_size": 2', '"beam_size": 3'))
    with pytest.raises(UserError, match=r"config\.json is damaged or was changed .*; copy it again"):
        load(folder)


def edit(folder, change, *, keeps_checksum=False):
    values = json.loads((folder / "config.json").read_text())
    change(values)
    if not keeps_checksum:
        del values["sha256"]["config.json"]
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("name", FILES)
def test_links_out_of_the_folder_are_refused(folder, tmp_path, name):
    (tmp_path / "elsewhere").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{re.escape(name)} is a link out of its folder; make a copy without links"):
        load(folder)


def test_the_folder_itself_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    load(tmp_path / "link")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ""])
def test_names_out_of_the_folder_are_refused(folder, name):
    edit(folder, lambda values: values["sha256"].update({name: "0" * 64}))
    with pytest.raises(UserError, match=r"must name files of this folder"):
        load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)} is not a file"):
        load(folder)


BOUNDS = {
    "max_extra_tokens": (10**8, "from 0 to 100,000"),
    "max_length": (2**40, "from 0 to 100,000"),
    "beam_size": (10**7, "from 1 to 1,024"),
    "batch_size": (2**31 + 1, "at least 1 and at most 2,147,483,647"),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_config_cannot_make_a_search_allocate_without_bounds(folder, name):
    value, remedy = BOUNDS[name]
    edit(folder, lambda values: values["settings"]["decoding"].update({name: value}))
    with pytest.raises(UserError, match=rf"settings\.decoding\.{name} is {value}, but must be {remedy}\."):
        load(folder)


BROKEN = {
    "infinite": (b'"alpha": 0.6', b'"alpha": 1e999', "alpha is inf"),
    "twice": (b'"task": ', b'"task": "translation", "task": ', "a name occurs twice"),
    "many digits": (b'"format_version": 2', b'"format_version": ' + b"9" * 5000, "not valid JSON"),
    "deep": (b'"alpha": 0.6', b'"alpha": ' + b"[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_strange_json_is_refused_in_one_sentence(folder, case):
    old, new, message = BROKEN[case]
    content = (folder / "config.json").read_bytes()
    assert old in content
    (folder / "config.json").write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"config\.json.*{message}"):
        load(folder)


def test_a_model_of_many_classes_is_loaded_as_it_was_saved(tmp_path):
    names = [f"class number {number:,}" for number in range(45_000)]
    assert load(write_classifier(tmp_path / "model", classes=names)).settings.classes == tuple(names)


UNSAVABLE = {
    "too many classes": ({"classes": ["x" * 400] * 45_000}, r"config\.json may have 16,000,000; use fewer classes"),
    "a class that ends a block": ({"classes": ["a```", "b"]}, r"fence \(```\)"),
    "out of range": ({"classes": CLASSES, "max_length": 2**32}, r"max_length is 4294967296, but must be .*at most"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_could_not_be_read_again_is_refused_before_training(case):
    settings, message = UNSAVABLE[case]
    config = ModelConfig(source_vocab_size=9, num_classes=len(settings["classes"]))
    with pytest.raises(UserError, match=message):
        check_savable("classification", config, settings, {"characters.txt": b""})
    with pytest.raises(UserError, match=r"characters\.txt has 64,000,001 bytes"):
        check_savable("classification", config, {"classes": CLASSES}, {"characters.txt": bytes(64_000_001)})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stablehlo")
    export_stablehlo(write_classifier(folder / "model"), folder / "out")
    return folder / "out"


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "out"))


def test_our_own_exports_are_read(copy):
    stablehlo_reader.load(copy)


def test_a_program_that_calls_out_is_refused(copy):
    def call(x):
        return jax.ffi.ffi_call("canary", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

    unchecked = [export.DisabledSafetyCheck.custom_call("canary")]
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    content = bytes(export.export(jax.jit(call), disabled_checks=unchecked)(shape).serialize())
    signature = json.loads((copy / "signature.json").read_text())
    [entry] = signature["programs"].values()
    (copy / entry["file"]).write_bytes(content)
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (copy / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(ExportError, match=r"calls canary outside of its program, which no export does"):
        stablehlo_reader.load(copy)


@pytest.mark.parametrize("file", ["../model/model.safetensors", "..", "", "a\0b", "\ud800", "a" * 9999])
def test_names_out_of_an_export_are_refused(copy, file):
    signature = json.loads((copy / "signature.json").read_text())
    [entry] = signature["programs"].values()
    entry["file"] = file
    (copy / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(ExportError):
        stablehlo_reader.load(copy)


def test_a_program_of_other_classes_is_refused(copy):
    signature = json.loads((copy / "signature.json").read_text())
    signature["classes"].append("one more")
    (copy / "signature.json").write_text(json.dumps(signature))
    with pytest.raises(ExportError, match=r"without the \d+ classes of signature\.json; copy it again"):
        stablehlo_reader.load(copy)


def test_links_out_of_an_export_are_refused(copy, tmp_path):
    for path in list(copy.iterdir()):
        if path.suffix in (".json", ".stablehlo"):
            path.rename(tmp_path / path.name)
            path.symlink_to(tmp_path / path.name)
            with pytest.raises(ExportError, match=rf"{re.escape(path.name)} is a link out of its folder"):
                stablehlo_reader.load(copy)
            path.unlink()
            (tmp_path / path.name).rename(path)


class Canary:
    """An object whose pickle makes a file when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", [*FILES, "vocab.json", "source.spm"])
def test_no_pickle_is_opened(folder, tmp_path, name):
    """In place of any file of a model folder, of a Marian folder, of weights to import, and of a run."""
    mark = tmp_path / "mark"
    plain = pickle.dumps(Canary(mark))
    array = io.BytesIO()
    np.save(array, np.array([Canary(mark)]), allow_pickle=True)
    for content in (plain, array.getvalue()):
        (folder / name).write_bytes(content)
        for opened in (
            lambda: load(folder),
            lambda: import_marian(folder, tmp_path / "out"),
            lambda: import_torch(folder / name, tmp_path / "out"),
            lambda: stablehlo_reader.load(folder),
            lambda content=content: tokenizer_from_files({name: content}),
            lambda: read_config(str(folder / "config.json")),
        ):
            with contextlib.suppress(UserError, ExportError):
                opened()
    assert not mark.exists()
    pickle.loads(plain)
    assert mark.exists(), "the canary sings when its cage is opened"


@pytest.fixture(scope="module")
def checkpoints_of_a_stranger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(1, {"params": jax.numpy.zeros(9)}, {})
    return folder


def restore(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        return checkpoints.restore(1, {"params": jax.ShapeDtypeStruct((9,), np.float32)})


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_no_link_in_a_checkpoint_is_followed(checkpoints_of_a_stranger, tmp_path):
    for number, name in enumerate(entries(checkpoints_of_a_stranger / "1")):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoints_of_a_stranger, folder / "checkpoints")
        (folder / "checkpoints" / "1" / name).rename(folder / "elsewhere")
        (folder / "checkpoints" / "1" / name).symlink_to(folder / "elsewhere")
        with pytest.raises(
            DamagedCheckpoint, match=re.escape(f"checkpoints/1 can't be read as a checkpoint ({name} is a link")
        ):
            restore(folder / "checkpoints")


def test_no_pickle_in_a_checkpoint_is_opened(checkpoints_of_a_stranger, tmp_path):
    mark = tmp_path / "mark"
    for number, name in enumerate(entries(checkpoints_of_a_stranger / "1")):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoints_of_a_stranger, folder)
        if (folder / "1" / name).is_file():
            (folder / "1" / name).write_bytes(pickle.dumps(Canary(mark)))
            if name != CHECKSUMS_FILE:
                write_checksums(folder / "1", leaving_out=("_CHECKPOINT_METADATA", "commit_success.txt"))
            with contextlib.suppress(DamagedCheckpoint):
                restore(folder)
    assert not mark.exists()


def test_what_expands_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(2_000_000)))
    monkeypatch.setattr(readers, "_LARGEST_TEXT", 1_000_000)
    with pytest.raises(UserError, match=r"bomb\.gz has more than 1,000,000 bytes of text; cut it into parts"):
        readers.read_lines(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_a_config_is_a_file_that_ends(tmp_path, monkeypatch, kind):
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr(files, "_LARGEST_SETTINGS", 10)
        path.write_text('{"seed": 1000}')
    reason = "File too large" if kind == "large" else "Not a regular file"
    with pytest.raises(UserError, match=rf"is not the config of a run \({reason}\); name"):
        read_config(str(path))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"config\.json can't be read \({reason}\); choose another"):
        find_origin(Config(), tmp_path)
