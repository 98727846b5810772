import pytest

from benchmarks import workers as module
from benchmarks.settings import Unavailable
from benchmarks.workers import Worker, alternate, workers
from tests.benchmarks import subjects


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0)


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
    assert second.startswith("b is left out: package ctranslate2 is not installed;")
    assert 'pip install -e ".[bench]"' in second
    assert third.startswith("c is ready after ")


def test_a_failure_comes_with_its_traceback():
    with Worker(subjects.failing) as worker, pytest.raises(RuntimeError, match="no luck"):
        worker.measure()
    with pytest.raises(RuntimeError, match="code 3"):
        Worker(subjects.dying)
    with pytest.raises(Unavailable, match="on strike"):
        Worker(subjects.unavailable)


def test_a_package_of_the_peers_is_told_from_one_of_ours():
    with pytest.raises(RuntimeError, match="no_such_package_at_all"):
        Worker(subjects.without_package_of_ours)
    with pytest.raises(ModuleNotFoundError) as inside:
        exec("import no_such_package_at_all", {"__name__": "torch._inductor.config"})
    assert module._is_of_peers(inside.value)
    with pytest.raises(ModuleNotFoundError) as outside:
        exec("import no_such_package_at_all", {"__name__": "transformer_jax.torch"})
    assert not module._is_of_peers(outside.value)


def test_a_peer_that_fails_is_left_out_but_ours_is_an_error(capsys):
    factories = {"ours": (subjects.counter, 1.0), "torch": (subjects.dying,), "torch, packed": (subjects.failing,)}
    with workers(factories) as measured:
        assert alternate(measured, repeats=2) == {"ours": [1.0, 2.0]}
    assert [line for line in capsys.readouterr().err.splitlines() if "left out" in line] == [
        "torch is left out: The measured process ended with code 3.",
        "torch, packed is left out: ValueError: no luck",
    ]
    with pytest.raises(RuntimeError, match="code 3"), workers({"ours": (subjects.dying,)}):
        pass
    with workers({"ours": (subjects.failing,)}) as measured, pytest.raises(RuntimeError, match="no luck"):
        alternate(measured)


def test_an_answer_is_not_waited_for_forever(monkeypatch):
    with Worker(subjects.slow) as worker:
        monkeypatch.setattr(module, "LONGEST", 0.1)
        monkeypatch.setattr(module, "FAREWELL", 0.1)
        with pytest.raises(RuntimeError, match="no answer"):
            worker.measure()
