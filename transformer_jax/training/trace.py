"""A trace of some steps, for TensorBoard and Perfetto (`train.py --profile`)."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from transformer_jax.system.files import AnyPath
from transformer_jax.training.logging import Mirror

WARM_UP = 10
"""Steps before the trace: programs are compiled and queues filled."""
TRACED = 10
"""Steps in it."""


@contextlib.contextmanager
def traced(step_fn: Callable[..., Any], folder: AnyPath | None, *, steps: int) -> Iterator[Callable[..., Any]]:
    """Within, calls of the yielded function are those of `step_fn`, some of which leave a trace in `folder`.

    Args:
        step_fn: a jitted function.
        folder: gets `plugins/profile/TIME/`, with a file `HOST.xplane.pb` for TensorBoard's profile plugin and
            `perfetto_trace.json.gz` for https://ui.perfetto.dev; with several processes, below a folder of each one's
            number. None: no trace.
        steps: calls that are to come. Where they are few, the warm-up is half of them.
    """
    if folder is None:
        yield step_fn
        return
    mirror = Mirror(folder if jax.process_count() == 1 else folder / str(jax.process_index()))
    first = min(WARM_UP, steps // 2)
    calls = 0
    is_tracing = False

    def traced_step(*arguments: Any) -> Any:
        nonlocal calls, is_tracing
        if calls == first:
            jax.profiler.start_trace(mirror.local, create_perfetto_trace=True)
            is_tracing = True
        with jax.profiler.StepTraceAnnotation("step", step_num=calls):
            result = step_fn(*arguments)
        calls += 1
        if calls == first + TRACED:
            jax.block_until_ready(result)
            is_tracing = False
            jax.profiler.stop_trace()
        return result

    try:
        yield traced_step
    finally:
        if is_tracing:
            jax.profiler.stop_trace()
        mirror.close()
