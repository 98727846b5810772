"""Runs beside each other: names, what differs, order, JSON, and the picture."""

import json
import tarfile

import pytest

from tests.experiments.folders import evaluations, training, write_run
from tests.experiments.test_runs import FIXTURES
from transformer_jax.experiments.compare import (
    as_json,
    compare,
    differences,
    draw_curves,
    flat_config,
    ordered,
    read_runs,
    short_names,
)
from transformer_jax.experiments.runs import read_run
from transformer_jax.system import UserError


@pytest.fixture
def three(tmp_path):
    """Runs `a`, `b` and `c`, of which the last has not been evaluated."""
    write_run(tmp_path / "a", [*training(3.0, 2.5), *evaluations(10.0, 30.0)], lr=1.0)
    write_run(tmp_path / "b", [*training(3.0, 2.0), *evaluations(20.0, 40.0)], lr=0.5)
    write_run(tmp_path / "c", training(3.0), lr=0.25, num_steps=300)
    return [str(tmp_path)]


def names(compared):
    return [run.name for run in compared]


def test_each_run_once(three, tmp_path):
    (tmp_path / "again").symlink_to(tmp_path / "a", target_is_directory=True)
    compared = compare(read_runs([str(tmp_path / "c"), *three, str(tmp_path / "b")]))
    assert names(compared) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/x/runs/a"], ["a"]),
        (["/x/runs/a", "/x/runs/b"], ["a", "b"]),
        (["/x/runs/a", "/x/other/a"], ["runs/a", "other/a"]),
        (["/x/runs", "/x/runs/a"], ["runs", "runs/a"]),
        (["gs://bucket/runs/a", "/x/runs/a"], ["gs:/bucket/runs/a", "//x/runs/a"]),
        (["/x/a\x1b[2J"], ["a\\x1b[2J"]),
    ],
)
def test_names_are_what_paths_do_not_share(paths, expected):
    assert short_names(paths) == expected


def test_fields_that_differ(three):
    compared = compare(read_runs(three))
    assert differences([run.config for run in compared]) == ["optim.lr", "training.num_steps"]
    assert [each["differs"] for each in as_json(compared)] == [
        {"optim.lr": 1.0, "training.num_steps": 400},
        {"optim.lr": 0.5, "training.num_steps": 400},
        {"optim.lr": 0.25, "training.num_steps": 300},
    ]


def test_fields_of_one_task_alone_do_not_differ(tmp_path):
    write_run(tmp_path / "a", training(1.0), task="couplet")
    write_run(tmp_path / "b", training(1.0), task="classification")
    configs = [run.config for run in compare(read_runs([str(tmp_path)]))]
    assert "couplet.rules" in configs[0]
    assert differences(configs) == ["task"]


def test_an_unreadable_config_hides_no_difference(three, tmp_path):
    (tmp_path / "b" / "config.json").write_text("{")
    compared = compare(read_runs(three))
    assert differences([run.config for run in compared]) == ["optim.lr", "training.num_steps"]
    assert as_json(compared)[1]["differs"] == {}


def test_a_run_of_an_earlier_release_beside_one_of_this(tmp_path):
    """Its config has other fields in other places, which are no differences."""
    with tarfile.open(FIXTURES / "couplet.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    before = json.loads((tmp_path / "couplet" / "config.json").read_text())
    assert "rules" in before["decoding"]
    new = write_run(tmp_path / "new", training(1.0), task="couplet")
    old, _ = (run.config for run in compare([read_run(tmp_path / "couplet"), read_run(new)]))
    assert old["couplet.rules"] == before["decoding"]["rules"]
    assert set(old) == set(flat_config(json.loads((new / "config.json").read_text())))
    assert {name: old[name] for name in ("optim.lr", "training.num_steps")} == {
        "optim.lr": before["optim"]["lr"],
        "training.num_steps": 8,
    }


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("best", ["b", "a", "c"]),
        ("path", ["a", "b", "c"]),
        ("step", ["c", "a", "b"]),
        ("optim.lr", ["c", "b", "a"]),
        ("training.num_steps", ["c", "a", "b"]),
        ("final", ["a", "b", "c"]),
    ],
)
def test_order(three, field, expected):
    assert names(ordered(compare(read_runs(three)), field)) == expected


def test_the_best_loss_is_the_smallest(three):
    compared = ordered(compare(read_runs(three), "loss"), "best")
    assert [(run.name, run.summary.metric, run.summary.best) for run in compared] == [
        ("a", "loss", 1.5),
        ("b", "loss", 1.5),
        ("c", "loss", None),
    ]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bestt", "'bestt', which runs do not have; did you mean best?"),
        ("lr", "did you mean optim.lr?"),
        ("optim.lrr", "did you mean optim.lr?"),
        ("?", "known here: path, state, "),
    ],
)
def test_unknown_fields(three, field, expected):
    with pytest.raises(UserError) as caught:
        ordered(compare(read_runs(three)), field)
    assert expected in str(caught.value)


def test_unknown_metrics(three, tmp_path):
    with pytest.raises(UserError, match=r"--metric is 'blue', a score that no run has; did you mean bleu\?"):
        compare(read_runs(three), "blue")
    with pytest.raises(UserError, match="no run has been evaluated yet"):
        compare([read_run(tmp_path / "c")], "bleu")


@pytest.fixture
def drawn(monkeypatch):
    """Stands in for the module of pictures: what it was asked to draw."""
    calls = []

    def learning_curves(curves, metric):
        calls.append((curves, metric))
        return f"figure {len(calls)}"

    monkeypatch.setattr("transformer_jax.plots.learning_curves", learning_curves)
    return calls


def test_the_picture_has_the_curves_of_the_metric(three, drawn):
    assert draw_curves(compare(read_runs(three))) == "figure 1"
    assert drawn == [({"a": ([100, 200], [10.0, 30.0]), "b": ([100, 200], [20.0, 40.0])}, "bleu")]


def test_pictures_of_nothing_and_of_several_metrics(three, tmp_path, drawn):
    with pytest.raises(UserError, match="nothing to draw, as no run has been evaluated for bleu"):
        draw_curves(compare([read_run(tmp_path / "c")]))
    write_run(tmp_path / "d", evaluations(0.5, metric="accuracy"), task="classification", metric="accuracy")
    with pytest.raises(UserError, match="the runs have bleu, accuracy; name one by --metric"):
        draw_curves(compare(read_runs(three)))
    draw_curves(compare(read_runs(three), "loss"))
    assert set(drawn[0][0]) == {"a", "b", "d"}
