"""Promise 15: memory stays flat, however many lines go through a command."""

import argparse
import io
import os
import platform
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tests.commands import translator  # noqa: F401
from transformer_jax.system import output, runtime
from transformer_jax.tasks import lines as bulk
from transformer_jax.tasks.translation.command import COMMAND

NEEDS_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is kept with glibc only")
ROOT = Path(__file__).resolve().parent.parent.parent
MEASURED = """
import sys
from transformer_jax.cli import main

status = main(sys.argv[2:])
# Of this process alone, unlike resource.getrusage, which begins with the peak of the parent.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
open(sys.argv[1], "w").write(peak.split()[1])
sys.exit(status)
"""


class Echo:
    """A model that answers with the text."""

    params = {}  # noqa: RUF012

    def check(self, texts):
        pass


def echo(model, lines, report):
    return [(f"{line.text}\n", []) for line in lines]


@pytest.mark.parametrize("is_retained", [False, pytest.param(True, marks=NEEDS_GLIBC)])
@pytest.mark.parametrize("policy", ["stop", "blank"])
def test_no_more_than_a_window_is_held(monkeypatch, tmp_path, policy, is_retained):
    monkeypatch.setattr(runtime, "_is_retained", is_retained)
    monkeypatch.setattr(bulk, "load_for", lambda command, path: Echo())
    monkeypatch.setattr(output, "QUIET_SECONDS", 1e9)
    monkeypatch.setattr(bulk, "WINDOW", 256)
    source, written = tmp_path / "in", tmp_path / "out"

    def peak_of(count):
        source.write_bytes(b"".join(b"%08d of the lines that go through\n" % i for i in range(count)))
        arguments = argparse.Namespace(texts=[], input=None, bad_lines=policy, output=str(written), model="model")
        with source.open("rb") as stream:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream, encoding="ascii"))
            tracemalloc.start()
            try:
                bulk.answer_lines(COMMAND, arguments, echo)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert written.read_bytes() == source.read_bytes()
        return peak

    peak_of(10)  # imports
    assert peak_of(20_000) <= 1.2 * peak_of(1_000)


def peak_of(tmp_path, translator, count, *options, pipe):  # noqa: F811
    """Peak memory of a command that translates that many lines, in MiB."""
    source, written, peak = tmp_path / "in", tmp_path / "out", tmp_path / "peak"
    source.write_bytes(b"".join(b"%s\n" % bytes(97 + i // 5**k % 5 for k in range(7)) for i in range(count)))
    command = [sys.executable, "-c", MEASURED, peak, "translate", "--model", translator, *options]
    # As in a program of its own: the tests' settings of glibc's memory would hide those of the command.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    with source.open("rb") as stdin, written.open("wb") as stdout:
        cat = subprocess.Popen(["cat"], stdin=stdin, stdout=subprocess.PIPE) if pipe else None
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=stdin if cat is None else cat.stdout,
            stdout=stdout,
            check=True,
            timeout=1800,
        )
        if cat is not None:
            cat.stdout.close()
            assert cat.wait() == 0
    result = tmp_path / "named" if (tmp_path / "named").exists() else written
    assert result.read_bytes().count(b"\n") == count
    return int(peak.read_text()) / 1024


def compare(tmp_path, translator, few, many, *options, pipe=False):  # noqa: F811
    peaks = {count: peak_of(tmp_path, translator, count, *options, pipe=pipe) for count in (few, many)}
    print(", ".join(f"{count:,} lines: {peak:,.0f} MiB" for count, peak in peaks.items()))
    assert peaks[many] <= 1.5 * peaks[few], peaks


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@pytest.mark.slow
@linux
def test_memory_of_40_000_translations(translator, tmp_path):  # noqa: F811
    compare(tmp_path, translator, 2_000, 40_000, "--beam=1", pipe=True)


@pytest.mark.soak
@linux
@pytest.mark.parametrize(
    "options",
    [[], ["--output=named", "--bad-lines=blank"], ["--temperature=1"]],
    ids=["stdin", "output", "sampled"],
)
def test_memory_of_200_000_translations(translator, tmp_path, options):  # noqa: F811
    options = [option.replace("named", str(tmp_path / "named")) for option in options]
    compare(tmp_path, translator, 2_000, 200_000, *options)
