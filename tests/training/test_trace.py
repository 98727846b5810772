import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.training import trace
from transformer_jax.training.trace import traced


@pytest.fixture
def step_fn():
    return jax.jit(lambda x: x + 1)


def steps_in(folder):
    """Numbers of the steps in a trace, counted from 0."""
    (file,) = folder.glob("plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))
    events = events["traceEvents"] if isinstance(events, dict) else events
    return sorted({int(event["args"]["step_num"]) for event in events if event.get("name") == "step"})


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(1, [0]), (4, [2, 3]), (30, list(range(trace.WARM_UP, trace.WARM_UP + trace.TRACED)))],
)
def test_steps_after_a_warm_up_are_traced(tmp_path, step_fn, steps, expected):
    x = jnp.zeros(())
    with traced(step_fn, tmp_path / "profile", steps=steps) as function:
        for _ in range(steps):
            x = function(x)
    assert x == steps
    assert steps_in(tmp_path / "profile") == expected
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))


def test_a_run_that_ends_early_leaves_what_there_is(tmp_path, step_fn):
    def fail():
        with traced(step_fn, tmp_path, steps=4) as function:
            for _ in range(3):
                function(jnp.zeros(()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert steps_in(tmp_path) == [2]
    jax.profiler.start_trace(tmp_path / "next")  # the one before has ended
    jax.profiler.stop_trace()


def test_without_a_folder_nothing_changes(step_fn):
    with traced(step_fn, None, steps=9) as function:
        assert function is step_fn
