"""`pipeline`: rate of reading, tokenizing and batching against the rate of the training step; share of padding."""

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.results import Record, device_name, installed_versions
from benchmarks.settings import Settings
from benchmarks.shipped import QUICK, SHIPPED, shipped_config
from benchmarks.workers import workers
from transformer_jax.config import Config
from transformer_jax.data.pipeline import Batches, Position
from transformer_jax.sharding import make_mesh
from transformer_jax.system import runtime
from transformer_jax.tasks.registry import make_task
from transformer_jax.training.setup import train_batches
from transformer_jax.training.step import init_state, make_optimizer, make_schedule, train_step

STEPS = 3
"""Training steps in each repetition."""


def run(settings: Settings) -> Iterator[Record]:
    """Rates, their ratio and the share of padding of each shipped config with available data."""
    device = device_name(settings.threads)
    repeats = 1 if settings.quick else 2
    for name in QUICK if settings.quick else SHIPPED:
        with workers({name: (build, name, settings)}, threads=settings.threads) as measured:
            for worker in measured.values():
                rounds = [worker.measure() for _ in range(repeats)]
                found = {key: statistics.median(round[key] for round in rounds) for key in rounds[0]}
                work = (
                    f"configs/{name}.py: an epoch, at most its first window of 65,536 examples, of "
                    f"{found['tokens']:,.0f} real tokens on all sides; the step of training on {STEPS} of its batches; "
                    f"median of {repeats}"
                )
                step = found["step"]
                later = "batching" if found["kept"] else "reading, tokenizing, batching again: several windows"
                for subject, unit, value in (
                    (f"{name}: first epoch (reading, tokenizing, batching)", "tokens/s", found["first"]),
                    (f"{name}: later epochs ({later})", "tokens/s", found["later"]),
                    (f"{name}: what the step consumes", "tokens/s", step),
                    (f"{name}: first epoch, times the step", "times", found["first"] / step),
                    (f"{name}: later epochs, times the step", "times", found["later"] / step),
                    (f"{name}: padding", "share", found["padding"]),
                ):
                    yield Record("pipeline", subject, None, unit, value, None, work, device, installed_versions())


def build(name: str, settings: Settings) -> Callable[[], dict[str, float]]:
    """Measures tokens per second of the first epoch, a later one and the step; whether tokens are kept; padding."""
    runtime.prepare()
    config = shipped_config(name, settings)
    task = make_task(config)
    all_batches = train_batches(task, config, make_mesh(config.mesh))
    untouched = copy.copy(all_batches)  # without the tokens that a first epoch keeps
    # The tokens of a set of one window are kept for later epochs.
    kept = not any(after.window for _, after in all_batches.iterate(epochs=1))
    step = _training(config, task, next(first_window(all_batches, epoch=1)))

    def measure() -> dict[str, float]:
        first = _rate(copy.copy(untouched), epoch=0)
        later = _rate(all_batches, epoch=1)
        batches = list(itertools.islice(first_window(all_batches, epoch=1), STEPS))
        started = time.perf_counter()
        for batch in batches:
            step(batch)
        seconds = time.perf_counter() - started
        consumed = sum(real_tokens(batch) for batch in batches) / seconds
        rates = {"first": first["rate"], "later": later["rate"], "step": consumed}
        return rates | {"kept": float(kept), "tokens": later["tokens"], "padding": later["padding"]}

    return measure


def first_window(batches: Batches[Any, Any], epoch: int) -> Iterator[Any]:
    """Batches of an epoch's first window, the records that are encoded at a time."""
    for batch, after in batches.iterate(Position(epoch), epochs=epoch + 1):
        yield batch
        if after.window > 0:
            return


def real_tokens(batch: Any) -> int:
    """Number of tokens in a batch without padding, on all sides."""
    return sum(int(np.count_nonzero(side)) for side in _sides(batch))


def _sides(batch: Any) -> list[np.ndarray]:
    return [getattr(batch, name) for name in batch._fields if name.endswith("segments")]


def _rate(batches: Batches[Any, Any], epoch: int) -> dict[str, float]:
    tokens = slots = 0
    seconds = 0.0
    source = first_window(batches, epoch)
    while True:
        started = time.perf_counter()
        batch = next(source, None)
        seconds += time.perf_counter() - started
        if batch is None:
            return {"rate": tokens / seconds, "tokens": tokens, "padding": 1 - tokens / slots}
        tokens += real_tokens(batch)
        slots += sum(side.size for side in _sides(batch))


def _training(config: Config, task: Any, first: Any) -> Callable[[Any], None]:
    """Makes one training step on a batch, as the training loop does, after one on `first` to warm up."""
    schedule = make_schedule(config.optim, d_model=config.model.d_model, num_steps=config.training.num_steps)
    optimizer = make_optimizer(config.optim, schedule)
    fresh = partial(_fresh, task, optimizer, ema=config.training.ema_decay > 0)
    state = jax.jit(fresh)(jax.random.key(config.seed))
    jitted = jax.jit(
        partial(
            train_step,
            loss_fn=task.loss,
            optimizer=optimizer,
            seed=config.seed,
            ema_decay=config.training.ema_decay,
        ),
        donate_argnums=0,
    )

    def step(batch: Any) -> None:
        nonlocal state
        state, sums = jitted(state, batch)
        float(sums["loss"])

    step(first)
    return step


def _fresh(task: Any, optimizer: Any, key: Any, *, ema: bool) -> Any:
    return init_state(task.init_params(key), optimizer, ema=ema)
