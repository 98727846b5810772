"""Promises 11, 12 and 17 where the input is a pipe or a named file, and where a command is killed."""

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import classifier, couplet_writer, run, translator  # noqa: F401
from tests.outcomes import as_lines, refused
from tests.tasks.toys import TEXTS
from transformer_jax.system import runtime
from transformer_jax.system.output import CHUNK_BYTES, chunks
from transformer_jax.tasks.model_folder import load

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_of_a_pipe_all_lines_before_a_bad_one_are_written(run, translator, small_windows, count):  # noqa: F811
    texts = ["abc", "b", "cab", "Bad"][:count]
    expected = as_lines(load(translator).translate(texts))
    status, out, err = run("translate", pipe=as_lines(texts).encode() + b"\xff\nabc\n")
    assert (status, out) == (2, expected)
    assert err.startswith(f"transformer-jax: error: <stdin>, line {count + 1}, byte 1 (0xff)")
    assert err.count("\n") == 1
    assert run("translate", pipe=as_lines(texts).encode()) == (0, expected, "")


def test_of_a_pipe_what_was_written_to_a_file_is_named(run, small_windows, tmp_path):  # noqa: F811
    stdin = b"abc\nb\nc\n" + b"a" * 100_000 + b"\n"
    status, out, err = run("translate", "--output", tmp_path / "out", pipe=stdin)
    assert (status, out) == (2, "")
    assert "Line 4 has 100,000 characters" in err
    assert "The output of at least the first 3 lines is in" in err
    assert (tmp_path / "out.partial").read_bytes().count(b"\n") == 3


def test_of_a_pipe_lines_are_streamed_as_they_come(run, translator):  # noqa: F811
    expected = as_lines(load(translator).translate(["abc", "b"], beam_size=1))
    status, out, err = run("translate", "--stream", pipe=b"abc\nb\n\xff\n")
    assert (status, out) == (2, expected)
    assert "<stdin>, line 3" in err


def test_lines_of_a_named_file(run, translator, small_windows, tmp_path):  # noqa: F811
    expected = as_lines(load(translator).translate(TEXTS))
    for content in (as_lines(TEXTS).encode(), gzip.compress(as_lines(TEXTS).encode())):
        for policy in ("stop", "blank"):
            (tmp_path / "in").write_bytes(content)
            arguments = ["--input", tmp_path / "in", f"--bad-lines={policy}"]
            assert run("translate", *arguments, stdin=b"not read\n") == (0, expected, "")
    with (tmp_path / "in").open("ab") as stream:
        stream.write(gzip.compress(b"b\n\xff\n"))
    refused(run("translate", "--input", tmp_path / "in"), f"{tmp_path / 'in'}, line 9, byte 1 (0xff)")


def test_a_named_pipe_is_read_once(run, translator, tmp_path):  # noqa: F811
    for content in (as_lines(TEXTS).encode(), gzip.compress(as_lines(TEXTS).encode())):
        reads, writes = os.pipe()
        os.write(writes, content)
        os.close(writes)
        result = run("translate", "--input", f"/dev/fd/{reads}")
        os.close(reads)
        assert result == (0, as_lines(load(translator).translate(TEXTS)), "")


def test_a_file_that_cannot_be_read(run, tmp_path):  # noqa: F811
    whole = gzip.compress(os.urandom(100).hex().encode() + b"\n" * 50)
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    (tmp_path / "in").write_bytes(b"abc\n")
    refused(run("translate", "--input", tmp_path / "no"), "no cannot be read, the file does not exist")
    refused(run("translate", "--input", tmp_path), "cannot be read (Is a directory)")
    refused(run("translate", "--input", tmp_path / "cut.gz"), "cut.gz is a damaged or truncated gzip file")
    refused(run("translate", "--input", ""), "--input is empty")
    refused(run("translate", "--input", tmp_path / "in", "abc"), "--input cannot be combined with texts")
    (tmp_path / "link").symlink_to("in")
    for name in ("in", "link"):
        arguments = ["--input", tmp_path / "in", "--output", tmp_path / name]
        refused(run("translate", *arguments), "is the file that --input names; name another")
    assert (tmp_path / "in").read_bytes() == b"abc\n"


def test_prefixes_beside_a_pipe(run, translator, small_windows, tmp_path):  # noqa: F811
    path = tmp_path / "prefixes"
    path.write_text("d\n\nab\n", encoding="utf-8")
    expected = as_lines(load(translator).translate(["abc", "b", "c"], prefix=["d", None, "ab"]))
    assert run("translate", "--prefix-file", path, pipe=b"abc\nb\nc\n") == (0, expected, "")
    status, out, err = run("translate", "--prefix-file", path, pipe=b"abc\nb\nc\nd\n")
    assert (status, out) == (2, as_lines(expected.splitlines()[:2]))
    assert "has 3 lines, but the input has more" in err
    status, _, err = run("translate", "--prefix-file", path, pipe=b"abc\n")
    assert status == 2
    assert "has 3 lines, but the input has 1;" in err
    path.write_bytes(b"d\n\n\xff\n")
    refused(run("translate", "--prefix-file", path, pipe=b"abc\nb\nc\n"), "prefixes, line 3, byte 1 (0xff)")


@pytest.mark.parametrize("command", ["translate", "couplet", "classify"])
def test_blank_lines_end_no_command(run, command):  # noqa: F811
    for policy in ("stop", "blank"):
        for options in ({"stdin": b"\nabc\n \n"}, {"pipe": b"\nabc\n \n"}):
            status, out, err = run(command, f"--bad-lines={policy}", **options)
            lines = out.split("\n")
            assert (status, len(lines), lines[0], lines[2]) == (0, 4, "", "")
            assert ("2 blank lines in the input" in err) == (command != "translate")


def test_chunks_are_whole_lines():
    lines = [b"x" * size + b"\n" for size in (0, 4095, 4096, 10, 3000, 3000, 9000, 0, 0, 50)]
    content = b"".join(lines) + b"an unfinished one"
    found = list(chunks(content))
    assert b"".join(found) == content
    for chunk in found:
        assert chunk.endswith(b"\n") or chunk == found[-1]
        assert len(chunk) <= CHUNK_BYTES or chunk.count(b"\n") == 1
    assert len(found) <= 9
    assert list(chunks(b"")) == []


def test_a_chunk_is_written_at_once(monkeypatch):
    reads, writes = os.pipe()
    calls = []
    with os.fdopen(writes, "w") as stream:
        monkeypatch.setattr(runtime, "write_at_once", lambda raw, content: calls.append(raw.write(content)))
        monkeypatch.setattr(sys, "stdout", stream)
        runtime.stdout_bytes(b"x" * 20_000)
    os.close(reads)
    assert calls == [20_000]


KILLED = """
import sys
from transformer_jax.cli import main
from transformer_jax.tasks import lines

lines.WINDOW = 200
sys.exit(main())
"""


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_killed_command_leaves_whole_lines(translator, tmp_path, kind):  # noqa: F811
    texts = ["abcde"[i % 5 :] + "abcde"[: i % 7 % 5] for i in range(30_000)]
    (tmp_path / "in").write_bytes(as_lines(texts).encode())
    command = [sys.executable, "-c", KILLED, "translate", "--model", translator, "--input", tmp_path / "in", "--beam=1"]
    with (tmp_path / "out").open("wb") as file:
        stdout = file if kind == "file" else subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=subprocess.DEVNULL)
        written = b"" if kind == "file" else process.stdout.read(5_000)
        while kind == "file" and not written and process.poll() is None:
            time.sleep(0.02)
            written = (tmp_path / "out").read_bytes()
        process.kill()
        if kind == "pipe":
            written += process.stdout.read()
            process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    written = (tmp_path / "out").read_bytes() if kind == "file" else written
    assert written.endswith(b"\n")
    lines = written.decode().splitlines()
    assert 0 < len(lines) < len(texts)
    assert lines == load(translator).translate(texts[: len(lines)], beam_size=1)
