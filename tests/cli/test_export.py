import importlib.util

import pytest

from tests.outcomes import refused
from transformer_jax.interop.stablehlo_reader import load as read
from transformer_jax.tasks.model_folder import load


@pytest.fixture
def export(run, translator):
    """The command, for a translator unless told otherwise."""
    return lambda *arguments, model=translator: run("export", *arguments, model=model)


def test_stablehlo(export, translator, tmp_path):
    said = f"{tmp_path}/out: for jax; {tmp_path}/out/README.md tells how to call it\n"
    assert export("--to", "stablehlo", tmp_path / "out") == (0, "", said)
    tokenizer = load(translator).tokenizer.source
    output = read(tmp_path / "out").greedy([[*tokenizer.encode("cab"), tokenizer.special_tokens.eos]], max_length=6)
    assert tokenizer.decode(output[0]) == load(translator).translate(["cab"], beam_size=1, max_length=7)[0]


def test_ctranslate2(export, tmp_path):
    pytest.importorskip("ctranslate2", reason="CTranslate2 is not installed: pip install ctranslate2")
    said = f"{tmp_path}/out: for CTranslate2; {tmp_path}/out/README.md tells how to call it\n"
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
def test_mistakes(export, arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    refused(export(*arguments), *expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]


@pytest.mark.parametrize("kind", ["ctranslate2", "marian", "pegasus", "stablehlo"])
def test_what_is_no_model_folder(export, kind, tmp_path):
    if kind == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        pytest.skip("CTranslate2 is not installed: pip install ctranslate2")
    refused(export("--to", kind, tmp_path / "out", model=tmp_path / "nowhere"), "nowhere", "is no folder")
    (tmp_path / "empty").mkdir()
    refused(export("--to", kind, tmp_path / "out", model=tmp_path / "empty"), "config.json", "is missing")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_models_of_other_kinds(export, classifier, tmp_path):
    refused(export("--to", "marian", tmp_path / "out", model=classifier), "no translation model", "MarianMTModel")
    assert export("--to", "stablehlo", tmp_path / "out", model=classifier)[0] == 0
