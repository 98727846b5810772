import pytest

from benchmarks.settings import Unavailable
from benchmarks.workers import Worker, alternate, workers
from tests.benchmarks import subjects


def test_workers_build_once_and_measure_in_turn():
    factories = {"one": (subjects.counter, 1.0), "ten": ("tests.benchmarks.subjects:counter", 10.0)}
    with workers(factories) as measured:
        assert alternate(measured, repeats=3) == {"one": [1.0, 2.0, 3.0], "ten": [10.0, 20.0, 30.0]}
        assert measured["one"].build_seconds > 0


def test_a_worker_keeps_its_limits():
    with Worker(subjects.limits, threads=1, environment={"X": "7"}) as worker:
        assert worker.measure() == {"cpus": 1.0, "threads": 1.0, "extra": 7.0}


def test_what_is_unavailable_is_left_out_with_a_line(capsys):
    factories = {"a": (subjects.unavailable,), "b": (subjects.without_package,), "c": (subjects.counter, 2.0)}
    with workers(factories) as measured:
        assert alternate(measured, repeats=1) == {"c": [2.0]}
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "a is left out: it is on strike; wait."
    assert "no_such_package_at_all" in second
    assert 'pip install -e ".[bench]"' in second
    assert third.startswith("c is ready after ")


def test_a_failure_comes_with_its_traceback():
    with Worker(subjects.failing) as worker, pytest.raises(RuntimeError, match="no luck"):
        worker.measure()
    with pytest.raises(RuntimeError, match="code 3"):
        Worker(subjects.dying)
    with pytest.raises(Unavailable, match="on strike"):
        Worker(subjects.unavailable)
