import importlib.util
import subprocess
import sys

import pytest

from tests.interop.marian_folders import make_folder
from tests.outcomes import refused
from transformer_jax.cli import main
from transformer_jax.interop import torch_transformer
from transformer_jax.interop.stablehlo_reader import load as read
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator


@pytest.fixture
def export(run, translator):
    """The command, for a translator unless told otherwise."""
    return lambda *arguments, model=translator: run("export", *arguments, model=model)


def test_export_to_stablehlo(export, translator, tmp_path):
    said = f"{tmp_path}/out: for jax; {tmp_path}/out/README.md shows how to use it\n"
    assert export("--to", "stablehlo", tmp_path / "out") == (0, "", said)
    tokenizer = load(translator).tokenizer.source
    output = read(tmp_path / "out").greedy([[*tokenizer.encode("cab"), tokenizer.special_tokens.eos]], max_length=6)
    assert tokenizer.decode(output[0]) == load(translator).translate(["cab"], beam_size=1, max_length=7)[0]


def test_export_to_ctranslate2(export, tmp_path):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: pip install ctranslate2")
    said = f"{tmp_path}/out: for CTranslate2; {tmp_path}/out/README.md shows how to use it\n"
    assert export("--to", "ctranslate2", "--quantization", "int8", tmp_path / "out") == (0, "", said)
    assert "stored as int8" in (tmp_path / "out" / "README.md").read_text("utf-8")
    refused(export("--to=ctranslate2", "--quantization=int3", tmp_path / "other"), "'int3'", "int8, ", "float32")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--to", "onnx", "out"], ["'onnx'", "ctranslate2, marian, pegasus, stablehlo"]),
        (["--to", "stablehlo", "--quantization", "int8", "out"], ["--quantization", "ctranslate2"]),
        (["--to", "stablehlo", "taken"], ["taken exists"]),
        (["--to", "stablehlo", "file/out"], ["file/out", "cannot be written"]),
    ],
)
def test_mistakes_in_exports(export, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    refused(export(*arguments), *expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize("kind", ["ctranslate2", "marian", "pegasus", "stablehlo"])
def test_exports_of_what_is_not_a_model_folder(export, kind, tmp_path):
    if kind == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        pytest.skip("CTranslate2 is not installed: pip install ctranslate2")
    refused(export("--to", kind, tmp_path / "out", model=tmp_path / "nowhere"), "nowhere", "is not a folder")
    (tmp_path / "empty").mkdir()
    refused(export("--to", kind, tmp_path / "out", model=tmp_path / "empty"), "config.json", "is missing")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_exports_of_other_architectures(export, classifier, tmp_path):
    refused(
        export("--to", "marian", tmp_path / "out", model=classifier), "not an encoder-decoder model", "MarianMTModel"
    )
    assert export("--to", "stablehlo", tmp_path / "out", model=classifier)[0] == 0


@pytest.fixture
def run_import(capfd):
    """Run the command; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        status = main(["import", *map(str, arguments)])
        return (status, *capfd.readouterr())

    return call


def test_import_from_marian(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian")
    said = f"{tmp_path}/out: a model folder; {tmp_path}/out/README.md describes it\n"
    assert run_import("--from", "marian", folder, tmp_path / "out") == (0, "", said)
    assert isinstance(load(tmp_path / "out"), Translator)
    assert "| imported from | a MarianMT model, marian |" in (tmp_path / "out" / "README.md").read_text("utf-8")
    refused(run_import("--from", "marian", folder, tmp_path / "out"), "exists")


def test_a_refused_import_leaves_nothing(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian", model_type="bart")
    refused(run_import("--from", "marian", folder, tmp_path / "deep" / "out"), "config.json", "'bart'")
    assert not (tmp_path / "deep").exists()


def test_an_import_that_cannot_be_written(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian")
    (tmp_path / "file").write_text("")
    refused(run_import("--from=marian", folder, tmp_path / "file" / "out"), "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "onnx", "in", "out"], ["'onnx'", "marian, torch"]),
        (["--from", "marian", "nowhere", "out"], ["nowhere is not a folder"]),
        (["--from", "marian", "--num-heads", "8", "in", "out"], ["--num-heads", "--from torch"]),
        (["--from", "marian", "--norm-first", "in", "out"], ["--norm-first"]),
        (["--from", "torch", "nowhere.safetensors", "out"], ["nowhere.safetensors is missing"]),
    ],
)
def test_mistakes_in_imports(run_import, arguments, expected):
    refused(run_import(*arguments), *expected)


def test_options_reach_the_import_of_pytorch(run_import, monkeypatch):
    calls = []
    monkeypatch.setattr(torch_transformer, "import_torch", lambda *args, **options: calls.append((args, options)))
    run_import("--from", "torch", "model.safetensors", "out")
    run_import("--from=torch", "--num-heads=4", "--norm-first", "--activation=gelu", "--prefix=m.", "in", "out")
    assert calls == [
        (("model.safetensors", "out"), {}),
        (("in", "out"), {"num_heads": 4, "norm_first": True, "activation": "gelu", "prefix": "m."}),
    ]


def test_help_on_import_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; from transformer_jax.cli import main; main(['import', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    help_text = " ".join(done.stdout.split())
    assert "marian, torch" in help_text
    assert "pickles" in help_text
