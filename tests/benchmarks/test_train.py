import contextlib
import dataclasses

import pytest

from benchmarks import quality, train
from benchmarks.quality import Point
from benchmarks.results import OURS
from benchmarks.settings import Settings, Unavailable
from benchmarks.workload import Tally, measured
from tests.benchmarks.test_workload import workload


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    for name in ("multi30k", "ag_news", "couplet"):
        (tmp_path / name).mkdir()
    for module in (train, quality):
        monkeypatch.setattr(module, "prepared", lambda settings, name, scratch: workload(scratch))
    return Settings(quick=True, data=tmp_path)


def test_train_gives_a_record_for_every_peer(settings, monkeypatch):
    def everyone(workers, repeats):
        return {name: [Tally(100 * (name == OURS) + 50, 120, 150, 2.0)] * repeats for name in workers}

    monkeypatch.setattr(train, "workers", lambda factories, threads: contextlib.nullcontext(factories))
    monkeypatch.setattr(train, "alternate", everyone)
    records = list(train.run(settings))
    assert [(r.subject, r.peer) for r in records if "translation" in r.subject] == [
        ("translation, random batches of 128", None),
        ("translation, random batches of 128", "torch"),
        ("translation, random batches of 128", "transformers"),
        ("translation, our batches", None),
        ("translation, our batches", "torch"),
    ]
    assert len(records) == 5
    assert {(r.value, r.ratio) for r in records} == {(75.0, None), (25.0, 3.0)}
    assert all("20.0 % of the slots padding" in r.work for r in records)
    thorough = list(train.run(dataclasses.replace(settings, quick=False)))
    assert {r.subject.partition(",")[0] for r in thorough} == {"translation", "classifier", "couplets"}
    assert [(r.subject, r.peer) for r in thorough if "dropout" in r.subject] == [
        ("translation, our batches and dropout", None),
        ("translation, our batches and dropout", "torch"),
        ("translation, our batches and dropout", "torch_compile"),
    ]


def test_what_is_missing_is_left_out_of_train(settings, monkeypatch, capsys):
    def alone(workers, repeats):
        return {OURS: [Tally(150, 120, 150, 2.0)] * repeats}

    monkeypatch.setattr(train, "workers", lambda factories, threads: contextlib.nullcontext(factories))
    monkeypatch.setattr(train, "alternate", alone)
    (settings.data / "multi30k").rmdir()
    records = list(train.run(dataclasses.replace(settings, quick=False)))
    assert [(r.subject, r.peer, r.value) for r in records] == [
        ("classifier, random batches of 128", None, 75.0),
        ("couplets, random batches of 128", None, 75.0),
    ]
    assert "train, translation, is left out" in capsys.readouterr().err
    with pytest.raises(Unavailable, match="multi30k"):
        list(train.run(settings))


def test_a_step_before_those_that_count_is_not_timed():
    taken = []

    def of(steps):
        taken.append(steps)
        return Tally(tokens=steps, seconds=1.0)

    measure = measured(of, 3)
    assert (measure().rate, measure().rate, taken) == (3.0, 3.0, [1, 1, 3, 1, 3])


def test_quality_tries_longer_plans_until_the_loss_is_reached(settings, monkeypatch, tmp_path):
    curve = tmp_path / "curve.jsonl"
    curve.write_text('{"minutes": 10.0, "loss": 4.0, "steps": 10}\n{"minutes": 20.0, "loss": 3.0, "steps": 20}\n')
    plans = []

    def trained(settings, workload, name, minutes, until):
        plans.append((name, minutes, until))
        return [Point(minutes / 2, 4.0, 5), Point(minutes, 3.5 if minutes < 6 else 2.9, 10)]

    monkeypatch.setattr(quality, "trained", trained)
    settings = Settings(data=settings.data, curve=curve)
    ours, theirs, *losses = list(quality.run(settings))
    assert plans == [(OURS, 4.0, 3.0), (OURS, 6.0, 3.0)]
    assert (ours.value, theirs.value, theirs.peer, theirs.ratio) == (6.0, 20.0, "torch", pytest.approx(20 / 6))
    assert [record.value for record in losses] == [2.9, 3.0]
    assert "planned for 6.0 minutes, the first of plans of 4.0, 6.0, 10.0 and 20.0 that reached it" in ours.work


def test_a_loss_that_is_not_reached_has_no_ratio(settings, monkeypatch, capsys):
    monkeypatch.setattr(quality, "trained", lambda *_, until=0.0: [Point(1.0, 4.0 if until else 3.0, 7)])
    theirs, *_ = list(quality.run(settings))
    assert (theirs.peer, theirs.ratio) == ("torch", None)
    assert "planned for 1.0 minutes, which did not reach it" in theirs.work
    assert "did not reach 3.000" in capsys.readouterr().err


def test_the_peers_curve_is_written_as_it_goes(settings, monkeypatch, tmp_path):
    class Measured:
        def __init__(self, *_, threads):
            self.count = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def measure(self):
            self.count += 1
            return self.count / 2, 5.0 - self.count, self.count

    monkeypatch.setattr(quality, "Worker", Measured)
    monkeypatch.setattr(quality, "POINTS", 3)
    settings = Settings(curve=tmp_path / "folder" / "curve.jsonl")
    points = quality.trained(settings, workload(), "torch", 1.5)
    assert [point.steps for point in points] == [1, 2, 3]
    assert quality.read_curve(settings.curve) == points
    assert len(quality.trained(settings, workload(), "torch", 1.5, until=3.5)) == 2
    assert quality.minutes_to(3.0, points) == 1.0
    assert quality.minutes_to(1.0, points) is None
