"""docs/formats.md names every file and field that a run, a model folder and a sweep have."""

import dataclasses
import json
import re

import pytest

from tests.experiments.folders import train_tiny
from tests.test_docs import REPOSITORY, read
from transformer_jax.experiments import report
from transformer_jax.experiments.folder import Sweep
from transformer_jax.system import ownership
from transformer_jax.training.step import Progress

PAGE = read(REPOSITORY / "docs" / "formats.md")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_tiny(folder, monkeypatch)
    return folder


def section(heading):
    """The text below a heading, up to the next one of its level."""
    level = heading.partition(" ")[0]
    return re.split(rf"^{level} ", PAGE.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def names(text):
    return set(re.findall(r"`([\w./-]+)`", text))


def row(text, first):
    """The cells of the row that begins with a name, as sets of names."""
    [cells] = re.findall(rf"^\| [^|]*`{re.escape(first)}`[^|]* \|(.*)\|$", text, re.MULTILINE)
    return [names(cell) for cell in cells.split(" | ")]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_of_a_run_are_listed(run):
    listed = names(PAGE) | names(read(REPOSITORY / "docs" / "training.md"))
    found = {path.name + "/" * path.is_dir() for path in run.iterdir()}
    assert found <= listed
    assert {"config.json", "model/", "log.jsonl", "checkpoints/"} <= found


def test_the_fields_of_a_model_folder(run):
    folder, text = run / "model", section("## The folder of a model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert {path.name for path in folder.iterdir()} <= names(text)
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(config)
    assert {"parameters", "steps"} <= row(text, "scores")[0] & set(config["scores"])


@pytest.mark.parametrize("name", ["identity.json", "finished.json"])
def test_the_fields_of_json_files(run, name):
    values = json.loads((run / name).read_text(encoding="utf-8"))
    assert set(values) <= row(section("## The folder of a run"), name)[0]


def test_the_fields_of_logs(run):
    text = section("### log.jsonl and timing.jsonl")
    evaluation = set(json.loads((run / "finished.json").read_text(encoding="utf-8"))["scores"])
    for column, name in enumerate(("log", "timing")):
        found = lines(run / f"{name}.jsonl")
        assert {line["kind"] for line in found} >= {"train", "evaluation", "final"}
        for line in found:
            scores = evaluation - {"minutes"} if column == 0 and line["kind"] != "train" else set()
            assert set(line) - {"step", "kind"} - scores <= row(text, line["kind"])[column]
    assert set(lines(run / "samples.jsonl")[0]) == row(section("## The folder of a run"), "samples.jsonl")[0]


def test_the_fields_of_checkpoints(run):
    documented = names(section("### Checkpoints"))
    found = max((path for path in (run / "checkpoints").iterdir() if path.is_dir()), key=lambda path: int(path.name))
    metadata = json.loads((found / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))["custom_metadata"]
    assert set(metadata["metadata"]) == {field.name for field in dataclasses.fields(Progress)} <= documented
    assert set(metadata) | {"checksums.json", "state", "checkpoints/protected.json"} <= documented


def test_the_fields_of_an_owner(tmp_path):
    owner = ownership.Ownership(tmp_path)
    written = set(json.loads(owner._content()))
    assert set(ownership.identity()) < written <= row(section("## The folder of a run"), "owner.json")[0]


def test_the_fields_of_a_sweep():
    text = section("## The folder of a sweep")
    fields = set(Sweep({}, [], "bleu", minimize=False).to_json())
    assert row(text, "sweep.json")[0] == fields | {"--storage"} - {"--storage"}
    assert {report.RESULTS_FILE, f"{report.PICTURES}/", f"{report.BEST}/config.json"} <= names(text)
    source = read(REPOSITORY / "transformer_jax" / "experiments" / "report.py")
    drawn = set(re.findall(r'^        "(\w+)": lambda', source, re.MULTILINE))
    assert {f"{name}.png" for name in drawn} == row(text, "pictures/")[0] != set()
