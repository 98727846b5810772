"""Whatever bytes a file or an argument has, its reader returns or raises a `UserError` of one line, in bounded time."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.fuzz_targets import TARGETS, one_sentence, prepared

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 10
"""That an input may take."""


def mutations(target):
    """Seeds with parts replaced by words of their grammar or other bytes, such inputs alone, and several in a row."""
    word = st.one_of(st.sampled_from(target.words), st.binary(max_size=8), st.text(max_size=4).map(str.encode))
    edit = st.tuples(st.floats(0, 1), st.integers(0, 40), word)

    def edited(seed, edits):
        for place, length, word in edits:
            start = int(place * len(seed))
            seed = seed[:start] + word + seed[start + length :]
        return seed

    seed = st.sampled_from(target.seeds)
    return st.one_of(
        st.builds(edited, seed, st.lists(edit, max_size=4)),
        st.lists(word, max_size=12).map(b"".join),
        st.lists(st.builds(edited, seed, st.lists(edit, max_size=1)), min_size=2, max_size=3).map(b"\n".join),
    )


@contextlib.contextmanager
def bounded_time():
    def stop(*_):
        raise TimeoutError(f"an input takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name, examples):
    with prepared(name) as target:

        @settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(mutations(target))
        def run(content):
            with bounded_time():
                one_sentence(target, content)

        run()


def fuzz_by_coverage(name, folder, runs):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install -e '.[fuzz]'), which has wheels for few systems")
    options = [f"-runs={runs}", "-seed=1", f"-timeout={SECONDS}", "-rss_limit_mb=4096", "-max_len=65536"]
    result = subprocess.run(
        [sys.executable, "-m", "tests.reliability.fuzz_by_coverage", name, str(folder), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    crashes = {path.name: path.read_bytes() for path in folder.glob("*-*") if path.is_file()}
    assert result.returncode == 0, f"{result.stderr[-4000:]}\n{crashes}"


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name):
    fuzz(name, 200)


@pytest.mark.parametrize("name", ["labelled texts"])
def test_inputs_guided_by_coverage(name, tmp_path):
    fuzz_by_coverage(name, tmp_path, 300)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_many_mutated_inputs(name):
    fuzz(name, 5_000)


@pytest.mark.soak
@pytest.mark.parametrize("name", TARGETS)
def test_many_inputs_guided_by_coverage(name, tmp_path):
    fuzz_by_coverage(name, tmp_path, 100_000)
