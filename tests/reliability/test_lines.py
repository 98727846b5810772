"""Promises 11, 12, 15 and 17: as many lines out as in, whatever the bytes; files aligned; flat memory; nothing half."""

import json
import signal

import pytest

from tests.commands import classifier, couplet_writer, run, translator  # noqa: F401
from tests.outcomes import as_lines, refused
from tests.tasks.toys import TEXTS
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator

ODD = ["abc\r", "\r", "a\rb", "a\0b", "a\u2028b", "a\x85b", "\ufeffab", "\v", "e\u0301"]


@pytest.mark.parametrize("policy", ["stop", "blank"])
def test_windows_change_nothing(run, translator, monkeypatch, policy):  # noqa: F811
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)
    expected = as_lines(load(translator).translate(TEXTS))
    assert run("translate", f"--bad-lines={policy}", stdin=as_lines(TEXTS).encode()) == (0, expected, "")
    assert run("translate", f"--bad-lines={policy}", stdin=as_lines(TEXTS).encode()[:-1]) == (0, expected, "")


def test_windows_and_lines_that_cannot_be_done_change_no_sample(run, translator, couplet_writer, monkeypatch):  # noqa: F811
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)
    translations = load(translator).translate(TEXTS, temperature=2.0, seed=3)
    options = ["--temperature=2", "--seed=3", "--bad-lines=blank"]
    assert run("translate", *options, stdin=as_lines(TEXTS).encode())[1] == as_lines(translations)
    stdin = as_lines(TEXTS).encode().replace(b"cab ab", b"\xff")
    translations[TEXTS.index("cab ab")] = ""
    assert run("translate", *options, stdin=stdin)[1] == as_lines(translations)
    replies = load(couplet_writer).search(["天地", "春", "花草", "山水"], temperature=2.0, seed=3)
    expected = [f"{best.text}\t{best.score:.4f}" for best, *_ in replies]
    expected[1] = ""
    assert run("couplet", *options, stdin="天地\n \n花草\n山水\n".encode())[1] == as_lines(expected)


@pytest.mark.parametrize("command", ["translate", "classify", "couplet"])
def test_as_many_lines_as_in_whatever_the_bytes(run, command):  # noqa: F811
    stdin = b"\xef\xbb\xbf" + as_lines(ODD).encode() + b"\xff\n" + b"a" * 1_000_000 + b"\n\nab\n\xe5\xa4"
    status, out, err = run(command, "--bad-lines=blank", stdin=stdin)
    assert status == 0
    assert out.count("\n") == len(ODD) + 5
    assert "lines could not be processed and are blank in the output; the first: " in err
    assert out.split("\n")[len(ODD)] == ""
    assert out.split("\n")[-2] == ""


def test_a_blank_answer_keeps_its_form(run):  # noqa: F811
    stdin = b"abc\n\xff\n"
    blank = json.loads(run("classify", "--json", "--bad-lines=blank", stdin=stdin)[1].split("\n")[1])
    assert blank == {"line": 2, "label": None, "probabilities": None}
    assert run("translate", "--scores", "--bad-lines=blank", stdin=stdin)[1].split("\n")[1] == "2\t\t"
    assert run("translate", "--stream", "--bad-lines=blank", stdin=stdin)[1].count("\n") == 2


def test_stop_is_known_before_the_work_begins(run, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 1)
    monkeypatch.setattr(Translator, "search", None)
    stdin = b"abc\n" + b"a" * 100_000 + b"\n"
    refused(run("translate", "--output", tmp_path / "out", stdin=stdin), "Line 2 has 100,000 characters")
    refused(run("translate", stdin=b"a\nb\n\xff\n"), "<stdin>, line 3, byte 1 (0xff)")
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_for_each_line(run, translator, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)
    path = tmp_path / "prefixes"
    path.write_text("d\n\nab\n", encoding="utf-8")
    expected = load(translator).translate(["abc", "b", "c"], prefix=["d", None, "ab"])
    assert run("translate", "--prefix-file", path, "abc", "b", "c") == (0, as_lines(expected), "")
    refused(run("translate", "--prefix-file", path, "abc"), "has 3 lines, but the input has 1")
    refused(run("translate", "--prefix-file", path, "--bad-lines=blank", stdin=b"a\n" * 4), "3 lines", "input has 4")
    path.write_text("d\nab\nz\n", encoding="utf-8")
    refused(run("translate", "--prefix-file", path, "abc", "b", "c"), "Prefix 3", "'z'")
    status, out, err = run("translate", "--prefix-file", path, "--bad-lines=blank", "abc", "b", "c")
    assert (status, out.split("\n")[2]) == (0, "")
    assert "1 line could not be processed" in err


def test_parallel_files_of_different_length(run, tmp_path):  # noqa: F811
    (tmp_path / "source").write_bytes(b"a\nb\n")
    (tmp_path / "reference").write_bytes(b"a\n")
    arguments = [f"--source={tmp_path / 'source'}", f"--reference={tmp_path / 'reference'}"]
    refused(run("evaluate", *arguments), "has 2 lines", "has 1;")


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal, with the handler that programs start with: pytest may have been started with it ignored."""
    before = signal.getsignal(request.param)
    signal.signal(request.param, signal.default_int_handler if request.param == signal.SIGINT else signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, signal.SIG_DFL if before is None else before)


def test_nothing_finished_is_lost(run, translator, monkeypatch, tmp_path, number):  # noqa: F811
    monkeypatch.setattr("transformer_jax.tasks.lines.WINDOW", 2)
    real, calls = Translator.search, []

    def search(self, texts, **options):
        calls.append(texts)
        if len(calls) == 3:
            signal.raise_signal(number)
        return real(self, texts, **options)

    expected = as_lines(load(translator).translate(TEXTS))
    monkeypatch.setattr(Translator, "search", search)
    path = tmp_path / "out"
    path.write_bytes(b"old")
    status, out, err = run("translate", "--output", path, *TEXTS)
    assert (status, out, err.count("\n")) == (128 + number, "", 1)
    assert "The output of at least the first 4 lines is in" in err
    assert path.read_bytes() == b"old"
    kept = (tmp_path / "out.partial").read_text(encoding="utf-8")
    assert kept == "".join(expected.splitlines(keepends=True)[:4])
    refused(run("translate", "--output", path, *TEXTS), "out.partial exists", "move it away or delete it")
    (tmp_path / "out.partial").unlink()
    assert run("translate", "--output", path, *TEXTS)[0] == 0
    assert path.read_text(encoding="utf-8") == expected
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_options_that_name_nothing(run):  # noqa: F811
    refused(run("translate", "--output=", "abc"), "--output is empty")
    refused(run("translate", "abc", model=""), "--model is empty")
