"""What is reported while models work, and evaluation in windows."""

import json
import threading

import pytest

from tests.outcomes import as_lines
from tests.tasks.toys import TEXTS
from transformer_jax.tasks.model_folder import load

FILLED = [text for text in TEXTS if text.strip()]
UPPERS = ["天", "春风有雨", "花草", "山水", "天地"]


class Counter:
    def __init__(self):
        self.counts = []
        self._lock = threading.Lock()

    def __call__(self, count):
        assert count > 0
        with self._lock:
            self.counts.append(count)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_each_text_is_reported_once(translator, couplet_writer, classifier, batch_size):
    for fixture, method, texts in (
        (translator, "search", FILLED),
        (translator, "translate", FILLED),
        (couplet_writer, "search", UPPERS),
        (couplet_writer, "reply", UPPERS),
        (classifier, "classify", FILLED),
        (classifier, "probabilities", FILLED),
    ):
        report = Counter()
        getattr(load(fixture), method)(texts, batch_size=batch_size, report=report)
        assert sum(report.counts) == len(texts)
        assert len(report.counts) > 1 or batch_size > 1


def test_each_score_is_reported_once(translator):
    report = Counter()
    model = load(translator)
    texts = [*FILLED, "a" * 20]  # of two padded lengths
    found = model.score(texts, texts, report=report)
    assert (sum(report.counts), len(report.counts)) == (len(texts), 2)
    assert [score.log_prob for score in found] == [score.log_prob for score in model.score(texts, texts)]


@pytest.mark.parametrize("name", ["translator", "couplet_writer", "classifier"])
def test_windows_change_no_score(run, request, monkeypatch, tmp_path, name):
    model = request.getfixturevalue(name)
    if name == "classifier":
        rows = zip(["bee", "cat", "dog", "bee", "cat"], FILLED, strict=True)
        (tmp_path / "data.csv").write_text("label,text\n" + as_lines(",".join(row) for row in rows), encoding="utf-8")
        arguments = ["--data", tmp_path / "data.csv"]
    else:
        texts = UPPERS if name == "couplet_writer" else FILLED
        for side, lines in (("source", texts), ("reference", texts[::-1])):
            (tmp_path / side).write_text(as_lines(lines), encoding="utf-8")
        arguments = ["--source", tmp_path / "source", "--reference", tmp_path / "reference", "--samples", 9]
    whole = run("evaluate", *arguments, model=model)
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)
    parts = run("evaluate", *arguments, model=model)
    assert whole[0] == parts[0] == 0
    assert whole[2] == parts[2]
    assert json.loads(whole[1]) | {"seconds": 0} == json.loads(parts[1]) | {"seconds": 0}
