import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from tests.training.test_loop import few_records, lines, scores, short  # noqa: F401  (the first is always used)
from transformer_jax.training import run
from transformer_jax.training.usage import TRACED_STEPS, WARM_UP_STEPS, traced


@pytest.fixture
def increment():
    return jax.jit(lambda x: x + 1)


def steps_in(folder):
    """Numbers of the steps in a trace, counted from 0."""
    (file,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "step"})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [0]), (4, [2, 3]), (30, list(range(WARM_UP_STEPS, WARM_UP_STEPS + TRACED_STEPS)))],
)
def test_steps_after_a_warm_up_are_traced(tmp_path, increment, steps, expected):
    x = jnp.zeros(())
    with traced(increment, tmp_path / "profile", steps=steps) as function:
        for _ in range(steps):
            x = function(x)
    assert x == steps
    assert steps_in(tmp_path / "profile") == expected
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_a_run_that_ends_early_leaves_what_there_is(tmp_path, increment):
    def fail():
        with traced(increment, tmp_path, steps=4) as function:
            for _ in range(3):
                function(jnp.zeros(()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert steps_in(tmp_path) == [2]
    jax.profiler.start_trace(tmp_path / "next")  # the one before has ended
    jax.profiler.stop_trace()


def test_without_a_folder_nothing_changes(increment):
    with traced(increment, None, steps=9) as function:
        assert function is increment


def test_a_run_logs_the_memory_of_its_step_and_leaves_a_trace(tmp_path, scores, capsys):  # noqa: F811
    scores(0.5)
    run(short(log_every=2), tmp_path, profile=True, verbose=True)
    assert steps_in(tmp_path / "profile") == [2, 3]
    said = capsys.readouterr().out
    assert "A step takes " in said
    expected = {"tokens_per_second", "tokens_per_second_per_device", "memory_gb", "minutes"}
    logged = [line for line in lines(tmp_path, "timing") if line["kind"] == "train"]
    assert len(logged) == 2
    for line in logged:
        assert expected <= set(line)
        assert line["tokens_per_second_per_device"] == pytest.approx(line["tokens_per_second"] / 8)
