"""`startup`: time from process start to the first training step; compiled programs; compile time by depth."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.results import Record, device_name, installed_versions
from benchmarks.settings import Settings, Unavailable
from benchmarks.shipped import EMBEDDED, ROOT, SHIPPED, shipped_options
from benchmarks.synthetic import UNCACHED, StepSize, SyntheticStep
from benchmarks.workers import THREAD_VARIABLES, alternate, workers
from transformer_jax.nn import ModelConfig
from transformer_jax.system import runtime

STARTED = ("numerals", "multi30k")
"""Configs with a timed start; only the first with --quick."""
LONGEST = 300.0
"""Timeout of a watched run, in seconds."""
REPEATS = 3
"""Repetitions of timed runs; 1 with --quick."""
STEPS = 3
"""Training steps before the evaluation with counted programs."""
TRAINING = "train_step"
"""Part of the name of the training step's program."""
COMPILED = re.compile(r"Finished XLA compilation of (\S+)")
LAYERS = (6, 48)
ALL_CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
"""As `transformer_jax.system.runtime` sets for its own folder."""


def run(settings: Settings) -> Iterator[Record]:
    """Seconds to the first step, number of programs, and compile time by depth."""
    device = device_name(settings.threads)
    for part in (_first_steps, _programs, _depth):
        for subject, unit, value, work in part(settings):
            yield Record("startup", subject, None, unit, value, None, work, device, installed_versions())


def _first_steps(settings: Settings) -> Iterator[tuple[str, str, float, str]]:
    repeats = 1 if settings.quick else REPEATS
    for name in _there(STARTED[:1] if settings.quick else STARTED, settings):
        options = [*shipped_options(name, settings), "--config.training.log_every=1"]
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        with tempfile.TemporaryDirectory() as scratch:
            if name not in EMBEDDED:
                # TFDS prepares a data set only once, so this is not part of later starts.
                watch(options, Path(scratch, "first"), Path(scratch, "cache of first"), "train", settings.threads)
            for number in range(repeats):
                cache = Path(scratch, f"cache {number}")
                for kind, times in seconds.items():
                    workdir = Path(scratch, f"{kind} {number}")
                    times.append(watch(options, workdir, cache, "train", settings.threads)[0])
        command = f"python train.py with configs/{name}.py until log.jsonl holds the first step, fresh work folder"
        for kind, what in (("cold", "an empty"), ("warm", "the run before's")):
            value = statistics.median(seconds[kind])
            work = f"{command}, {what} cache of compiled programs, files in the page cache; median of {repeats}"
            yield f"{name}: first step, {kind}", "s", value, work


def _programs(settings: Settings) -> Iterator[tuple[str, str, float, str]]:
    for name in _there(STARTED[:1] if settings.quick else SHIPPED, settings):
        steps = f"--config.training.eval_every={STEPS}"
        options = [*shipped_options(name, settings), "--config.training.log_every=1", steps]
        with tempfile.TemporaryDirectory() as scratch:
            folder, cache = Path(scratch, "run"), Path(scratch, "cache")
            _, output = watch(options, folder, cache, "evaluation", settings.threads, {"JAX_LOG_COMPILES": "1"})
        for subject, programs in programs_of(output).items():
            work = (
                f"python train.py with configs/{name}.py, {STEPS} steps, all of the one shape that batches have, and "
                f"an evaluation; no cache: {', '.join(_counted(programs))}"
            )
            yield f"{name}: {subject}", "programs", len(programs), work


def _depth(settings: Settings) -> Iterator[tuple[str, str, float, str]]:
    model = ModelConfig(d_model=64, num_heads=4, d_ff=256, source_vocab_size=1000, target_vocab_size=1000)
    model = replace(model, scan_layers=True)
    sizes = {
        f"{n}": StepSize(replace(model, num_encoder_layers=n, num_decoder_layers=n), rows=8, length=64) for n in LAYERS
    }
    repeats = 1 if settings.quick else REPEATS
    factories = {layers: (build_compilation, size) for layers, size in sizes.items()}
    with workers(factories, threads=settings.threads, environment=UNCACHED) as measured:
        found = {layers: statistics.median(times) for layers, times in alternate(measured, repeats).items()}
    for layers, seconds in found.items():
        work = f"tracing and compiling {sizes[layers]}, no cache; median of {repeats}"
        yield f"compile time, {layers}+{layers} layers", "s", seconds, work
    few, many = map(str, LAYERS)
    work = f"the two above, {many}+{many} layers against {few}+{few}"
    yield f"compile time, {many} layers against {few}", "times", found[many] / found[few], work


def programs_of(output: str) -> dict[str, list[str]]:
    """Names of the programs compiled before and after the last step in the output of `watch`.

    Raises:
        RuntimeError: if the output lacks that step or the compilation of the training step.
    """
    before, separator, after = output.partition(f"Step {STEPS}/")
    training, evaluation = COMPILED.findall(before), COMPILED.findall(after)
    if not separator or not any(TRAINING in name for name in training):
        raise RuntimeError(f"The output of train.py has no step {STEPS}, or no compiled {TRAINING}.")
    return {
        "programs of training in an epoch, evaluation apart": training,
        "programs of an evaluation, beside those of training": evaluation,
    }


def build_compilation(size: StepSize) -> Callable[[], float]:
    """Measures the seconds to compile a step."""
    runtime.prepare()
    SyntheticStep(size).compile()
    return lambda: SyntheticStep(size).compile()


def watch(
    options: Sequence[str],
    workdir: Path,
    cache: Path,
    kind: str,
    threads: int,
    environment: Mapping[str, str] | None = None,
) -> tuple[float, str]:
    """Run `train.py` until its log has a line of `kind`; return seconds since its start, and its output.

    Raises:
        RuntimeError: if it ends before that, or takes longer than `LONGEST`.
    """
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache)} | ALL_CACHED
    environment = os.environ | limits | cached | dict(environment or {})
    log = workdir / "log.jsonl"
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *options, f"--workdir={workdir}"],
            env=environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, sorted(os.sched_getaffinity(0))[:threads])
        try:
            while not _has(log, kind):
                if process.poll() is not None or time.perf_counter() - started > LONGEST:
                    printed.seek(0)
                    raise RuntimeError(f"train.py {' '.join(options)} did not log {kind!r}:\n{printed.read()[-2000:]}")
                time.sleep(0.01)
            seconds = time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        printed.seek(0)
        return seconds, printed.read()


def _has(log: Path, kind: str) -> bool:
    lines = log.read_text("utf-8").splitlines(keepends=True) if log.exists() else []
    return any(json.loads(line)["kind"] == kind for line in lines if line.endswith("\n"))


def _there(names: Sequence[str], settings: Settings) -> Iterator[str]:
    """Configs with available data."""
    for name in names:
        try:
            shipped_options(name, settings)
        except Unavailable as reason:
            print(f"{name} is left out: {reason}", file=sys.stderr, flush=True)
        else:
            yield name


def _counted(names: Sequence[str]) -> list[str]:
    return [f"{name} {names.count(name)}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
