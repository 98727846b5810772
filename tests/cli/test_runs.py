"""The commands `runs` and `info`."""

import json
import os
import subprocess
import sys

import pytest

from tests.experiments.folders import evaluations, training, write_run
from tests.outcomes import refused
from transformer_jax.cli import main


@pytest.fixture
def call(capfd):
    """Run a command; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        status = main([*map(str, arguments)])
        return (status, *capfd.readouterr())

    return call


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path / "runs" / "a", [*training(3.0, 2.5), *evaluations(10.0, 30.0)], lr=1.0)
    write_run(tmp_path / "runs" / "b", [*training(3.0, 2.0), *evaluations(20.0, 40.0)], lr=0.5)
    return tmp_path / "runs"


def test_runs_are_shown(call, folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = call("runs", folder, "--sort", "best")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines[1:3]] == ["b", "a"]
    assert ["lr"] in [line[-1:] for line in lines]
    assert "validation bleu" in out
    assert "\x1b" not in out, "no terminal"


def test_runs_without_a_folder_are_those_of_runs(call, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert call("runs", "--json") == call("runs", "runs", "--json")


def test_runs_as_json(call, folder):
    status, out, err = call("runs", "--json", "--metric=loss", folder)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(run["path"], run["metric"], run["best"], run["best_step"]) for run in found] == [
        (str(folder / "a"), "loss", 1.5, 200),
        (str(folder / "b"), "loss", 1.5, 200),
    ]
    assert [run["differs"] for run in found] == [{"optim.lr": 1.0}, {"optim.lr": 0.5}]


def test_damage_is_told_beside_the_table(call, folder):
    (folder / "a" / "log.jsonl").write_text("no JSON\n" + (folder / "a" / "log.jsonl").read_text())
    (folder / "b" / "config.json").write_text("{")
    status, out, err = call("runs", folder, "--metric=bleu")
    assert status == 0
    assert [line.split(":")[1].split()[0] for line in err.splitlines()] == [
        str(folder / "a" / "log.jsonl"),
        str(folder / "b" / "config.json"),
    ]
    assert "30" in out
    assert "40" in out
    problems = [run["problems"] for run in json.loads(call("runs", folder, "--json")[1])]
    assert [f"transformer-jax: {problem}" for (problem,) in problems] == err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/none"], ["runs/none can't be read (No such file"]),
        ([""], ["name of a file or folder is empty"]),
        (["runs", "--metric=blue"], ["did you mean bleu?"]),
        (["runs", "--metric="], ["--metric is ''"]),
        (["runs", "--sort=lr"], ["did you mean optim.lr?"]),
        (["runs", "--sort="], ["--sort is ''"]),
        (["runs", "--png=curves.jpg"], ["curves.jpg", "ends in .png"]),
        (["runs", "--png="], ["--png is empty"]),
        (["runs", "--png=none/curves.png"], ["none/curves.png cannot be written"]),
    ],
)
def test_mistakes(call, folder, monkeypatch, arguments, expected):
    monkeypatch.chdir(folder.parent)
    refused(call("runs", *arguments), *expected)
    assert list(folder.parent.iterdir()) == [folder]


def test_info_on_a_run_and_a_model(call, folder, translator):
    status, out, err = call("info", folder / "a")
    assert (status, err) == (0, "")
    assert out.startswith(f"{folder}/a\na run of the task translation, stopped\n")
    status, out, err = call("info", "--json", translator)
    assert (status, err) == (0, "")
    assert json.loads(out)["task"] == "translation"
    refused(call("info", folder), "neither a run nor a model folder")
    refused(call("info", ""), "empty")


def test_the_table_needs_no_jax(folder):
    code = "import sys; sys.modules['jax'] = None; from transformer_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, "runs", str(folder)]
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert "│" in done.stdout.decode("utf-8"), "UTF-8, whatever the locale"
    assert done.stderr == b""
