"""Things to measure, for the tests of workers."""

import os
import time
from collections.abc import Callable

from benchmarks.settings import Unavailable


def counter(step: float) -> Callable[[], float]:
    count = 0.0

    def measure() -> float:
        nonlocal count
        count += step
        return count

    return measure


def limits() -> Callable[[], dict[str, float]]:
    threads = float(os.environ["OMP_NUM_THREADS"])
    return lambda: {"cpus": float(len(os.sched_getaffinity(0))), "threads": threads, "extra": float(os.environ["X"])}


def unavailable() -> Callable[[], float]:
    raise Unavailable("it is on strike; wait.")


def without_package() -> Callable[[], float]:
    raise ModuleNotFoundError("No module named 'ctranslate2'", name="ctranslate2")


def without_package_of_ours() -> Callable[[], float]:
    import no_such_package_at_all  # noqa: F401

    return counter(1.0)


def slow() -> Callable[[], float]:
    def measure() -> float:
        time.sleep(60)
        return 0.0

    return measure


def failing() -> Callable[[], float]:
    def measure() -> float:
        raise ValueError("no luck")

    return measure


def dying() -> Callable[[], float]:
    os._exit(3)
