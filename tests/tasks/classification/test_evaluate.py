import json

import numpy as np
import pytest

from tests.outcomes import data_config, refused
from tests.tasks.toys import CLASSES, write_classifier
from transformer_jax import plots
from transformer_jax.config import DataConfig
from transformer_jax.tasks.classification import ClassificationConfig, headlines
from transformer_jax.tasks.classification.metrics import classification_scores, confusion_table
from transformer_jax.tasks.classification.sources import load_training_data
from transformer_jax.tasks.model_folder import load

ROWS = [("bee", "abc"), ("cat", "Bad"), ("dog", "cab ab"), ("bee", "decade"), ("cat", "a"), ("bee", "EDCBA")]


@pytest.fixture
def evaluate(run, classifier):
    def call(*arguments, model=classifier):
        return run("evaluate", *arguments, model=model)

    return call


@pytest.fixture
def data(tmp_path):
    return written(tmp_path / "data.csv", ROWS)


def written(path, rows):
    path.write_text("".join(f"{','.join(row)}\n" for row in [("label", "text"), *rows]), encoding="utf-8")
    return path


def test_the_report(evaluate, classifier, data):
    status, out, err = evaluate("--data", data)
    report = json.loads(out)
    model = load(classifier)
    labels = np.array([CLASSES.index(label) for label, _ in ROWS])
    scores = classification_scores(labels, model.probabilities([text for _, text in ROWS]), CLASSES)
    assert status == 0
    assert report == {
        "accuracy": pytest.approx(scores.accuracy),
        "macro_f1": pytest.approx(scores.macro_f1),
        "expected_calibration_error": pytest.approx(scores.expected_calibration_error),
        "classes": {
            name: {
                "precision": pytest.approx(scores.precision[c]),
                "recall": pytest.approx(scores.recall[c]),
                "f1": pytest.approx(scores.f1[c]),
                "support": [3, 2, 1][c],
            }
            for c, name in enumerate(CLASSES)
        },
        "confusion": scores.confusion.tolist(),
        "texts": 6,
        "seconds": report["seconds"],
        "model": str(classifier),
    }
    assert "classifying 6 texts" in err
    assert confusion_table(scores.confusion, CLASSES) in err


def test_json_lines_and_samples(evaluate, classifier, data, tmp_path):
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in ROWS))
    direct, report = (json.loads(evaluate("--data", path, "--samples", 2)[1]) for path in (data, lines))
    assert report | {"seconds": 0} == direct | {"seconds": 0}
    said = load(classifier).classify([text for _, text in ROWS[:2]])
    assert report["samples"] == [
        {"input": text, "output": each.label, "reference": label}
        for (label, text), each in zip(ROWS[:2], said, strict=True)
    ]


def test_columns_are_named_or_those_of_training(evaluate, data, tmp_path):
    direct = json.loads(evaluate("--data", data)[1])
    (tmp_path / "named.csv").write_text("".join(f"{','.join(row)}\n" for row in [("kind", "body"), *ROWS]))
    (tmp_path / "bare.csv").write_text("".join(f"{','.join(row)}\n" for row in ROWS))
    named = ["--data", tmp_path / "named.csv", "--label-column", "kind", "--text-columns", "body"]
    bare = ["--data", tmp_path / "bare.csv", "--label-column", 1, "--text-columns", 2]
    trained_so = write_classifier(tmp_path / "model", text_columns=("2",), label_column="1")
    for arguments, model in ((named, {}), (bare, {}), (bare[:2], {"model": trained_so})):
        report = json.loads(evaluate(*arguments, **model)[1])
        assert report["confusion"] == direct["confusion"]
    refused(evaluate(*bare[:2]), "no column is named 'text'", "without a header: numbers from 1")
    refused(evaluate("--config", "x.py", "--split", "test", *named[2:]), "--label-column with --data only")


def test_the_batch_size_changes_nothing(evaluate, data):
    reports = [json.loads(evaluate("--data", data, "--batch-size", size)[1]) for size in (1, 64)]
    assert reports[0]["confusion"] == reports[1]["confusion"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture(evaluate, data, tmp_path, suffix):
    picture = tmp_path / f"confusion.{suffix}"
    assert evaluate("--data", data, "--picture", picture)[0] == 0
    assert picture.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


@pytest.mark.parametrize(("name", "expected"), [("a.gif", ".png or .svg"), ("no/a.png", "No such file")])
def test_a_picture_that_cannot_be_is_refused_before_the_work(evaluate, data, tmp_path, name, expected):
    refused(evaluate("--data", data, "--picture", tmp_path / name), name, expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("label,text\nbee,abc\nemu,abc\n", ["row 3", "'emu' is unknown", "bee, cat, dog"]),
        ("label,text\nbee,abc\ncat\n", ["row 3", "1 columns, but the first row has 2"]),
        ("label,body\nbee,abc\n", ["row 1", "no column is named 'text'", "'label', 'body'", "--text-columns"]),
        ("label,text\nbee,\n", ["row 2", "text is empty"]),
        ("label,text\n", ["no rows"]),
    ],
)
def test_bad_rows_are_named_with_their_file(evaluate, tmp_path, content, expected):
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    refused(evaluate("--data", path), "bad.csv", *expected)


def test_bad_json_lines_are_named_with_their_file(evaluate, tmp_path):
    path = tmp_path / "bad.jsonl"
    for line, expected in (('{"text": "a"}', '"label" is missing'), ('{"text": "a", "label": "emu"}', "'emu'")):
        path.write_text(f'{{"text": "a", "label": "bee"}}\n{line}\n', encoding="utf-8")
        refused(evaluate("--data", path), "bad.jsonl, row 2", expected)


def test_data_of_a_configuration(evaluate, data, tmp_path):
    direct = json.loads(evaluate("--data", data)[1])
    config = data_config(tmp_path, name="text", train_file=str(data), validation_file=str(data))
    status, out, _ = evaluate("--config", config, "--split", "validation")
    assert status == 0
    assert json.loads(out) | {"seconds": 0} == direct | {"seconds": 0}


def test_the_part_that_training_holds_out(evaluate, tmp_path):
    rows = [(label, f"{text} {number}") for number in range(9) for label, text in ROWS]
    fields = {"name": "text", "train_file": str(written(tmp_path / "all.csv", rows)), "validation_split": ""}
    data = DataConfig(**fields, validation_percent=30.0)
    expected = load_training_data(data, ClassificationConfig()).validation
    config = data_config(tmp_path, **fields, validation_percent=30.0)
    status, out, _ = evaluate("--config", config, "--split", "validation", "--samples", 99)
    assert status == 0
    assert [sample["input"] for sample in json.loads(out)["samples"]] == [record.text for record in expected]
    assert 0 < len(expected) < len(rows)


def test_headlines(evaluate, tmp_path):
    model = write_classifier(tmp_path / "model", classes=headlines.CLASSES, max_length=15)
    config = data_config(tmp_path, name="headlines")
    status, out, _ = evaluate("--config", config, "--split", "test", "--batch-size", 1000, model=model)
    report = json.loads(out)
    assert (status, report["texts"], tuple(report["classes"])) == (0, 1000, headlines.CLASSES)
    records = [headlines.Headlines("test")[i] for i in range(1000)]
    support = [sum(record.label == name for record in records) for name in headlines.CLASSES]
    assert [sum(row) for row in report["confusion"]] == support


def test_classes_that_the_model_has_not_seen(evaluate, data, tmp_path):
    config = data_config(tmp_path, name="headlines")
    refused(evaluate("--config", config, "--split", "test"), "classes that the model has not seen", "markets, science")
    refused(evaluate("--config", config, "--split", "dev"), "dev")
    others = written(tmp_path / "others.csv", [*ROWS, ("emu", "a")])
    config = data_config(tmp_path, name="text", train_file=str(others), validation_file=str(data))
    refused(evaluate("--config", config, "--split", "validation"), "not seen (emu)")


@pytest.mark.parametrize(
    "option", [("--source", "x"), ("--reference", "x"), ("--beam", 2), ("--alpha", 1), ("--rules", "none")]
)
def test_options_of_other_tasks_are_refused(evaluate, data, option):
    refused(evaluate("--data", data, *option), option[0], "means nothing for", "classification")


def test_which_data_must_be_said(evaluate, data):
    for arguments in ([], ["--split", "test"], ["--data", data, "--split", "test"], ["--config", "x.py"]):
        refused(evaluate(*arguments), "--data, or --config and --split")


def test_pictures(evaluate, classifier, data, tmp_path, monkeypatch):
    drawn = {}
    for name in ("confusion_matrix", "reliability_diagram"):
        draw = getattr(plots, name)
        monkeypatch.setattr(
            plots, name, lambda *given, name=name, draw=draw: drawn.setdefault(name, given) and draw(*given)
        )
    folder = tmp_path / "pictures"
    status, out, _ = evaluate("--data", data, "--plots", folder)
    report = json.loads(out)
    assert status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "reliability.png"]
    matrix, names = drawn["confusion_matrix"]
    assert (matrix.tolist(), tuple(names)) == (report["confusion"], CLASSES)
    accuracy, confidence, examples = drawn["reliability_diagram"]
    assert accuracy @ examples == pytest.approx(6 * report["accuracy"])
    assert np.abs(accuracy - confidence) @ examples == pytest.approx(6 * report["expected_calibration_error"])
