import subprocess
import sys

import pytest

from tests.interop.marian_folders import make_folder
from tests.outcomes import refused
from transformer_jax.cli import main
from transformer_jax.interop import torch_transformer
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator


@pytest.fixture
def run_import(capfd):
    """Run the command; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        status = main(["import", *map(str, arguments)])
        return (status, *capfd.readouterr())

    return call


def test_marian(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian")
    said = f"{tmp_path}/out: a model folder; {tmp_path}/out/README.md tells of it\n"
    assert run_import("--from", "marian", folder, tmp_path / "out") == (0, "", said)
    assert isinstance(load(tmp_path / "out"), Translator)
    assert "| imported from | a MarianMT model, marian |" in (tmp_path / "out" / "README.md").read_text("utf-8")
    refused(run_import("--from", "marian", folder, tmp_path / "out"), "exists")


def test_a_refusal_leaves_nothing(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian", model_type="bart")
    refused(run_import("--from", "marian", folder, tmp_path / "deep" / "out"), "config.json", "'bart'")
    assert not (tmp_path / "deep").exists()


def test_an_output_that_cannot_be_written(run_import, tmp_path):
    folder = make_folder(tmp_path / "marian")
    (tmp_path / "file").write_text("")
    refused(run_import("--from=marian", folder, tmp_path / "file" / "out"), "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--from", "onnx", "in", "out"], ["'onnx'", "marian, torch"]),
        (["--from", "marian", "nowhere", "out"], ["nowhere is no folder"]),
        (["--from", "marian", "--num-heads", "8", "in", "out"], ["--num-heads", "--from torch"]),
        (["--from", "marian", "--norm-first", "in", "out"], ["--norm-first"]),
        (["--from", "torch", "nowhere.safetensors", "out"], ["nowhere.safetensors is missing"]),
    ],
)
def test_mistakes_are_told(run_import, arguments, expected):
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


def test_help_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; from transformer_jax.cli import main; main(['import', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    help_text = " ".join(done.stdout.split())
    assert "marian, torch" in help_text
    assert "pickles" in help_text
