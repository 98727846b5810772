import io
import sys

import pytest

from transformer_jax.cli import main
from transformer_jax.tasks.translation.translator import Translator


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [(KeyboardInterrupt, 130, "transformer-jax: stopped by Ctrl-C.\n"), (BrokenPipeError, 141, "")],
)
def test_quiet_ends(run, monkeypatch, error, status, expected):
    def raise_it(*_, **__):
        raise error

    monkeypatch.setattr(Translator, "search", raise_it)
    assert run("translate", "abc") == (status, "", expected)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["paint"],
        ["couplet"],
        ["couplet", "--model", "x", "--n", "many"],
        ["classify", "--model", "x", "--rules", "none"],
        ["translate"],
        ["translate", "--model", "x", "--beam", "many"],
        ["translate", "--model=--", "abc"],
    ],
)
def test_usage_errors(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_an_error_is_one_line_whatever_it_quotes(capsys):
    assert main(["translate", "--model", "no\nsuch\x0b folder\x1e", "abc"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("translate", ["LINE<TAB>SCORE<TAB>TEXT"]),
        ("classify", ["CLASS<TAB>PROBABILITY"]),
        ("couplet", ["LOWER<TAB>SCORE", "LINE<TAB>LOWER<TAB>SCORE", "length,tones=2,distinct=off", "--explain"]),
        ("evaluate", ["--data", "--source", "--config", "JSON"]),
    ],
)
def test_help_documents_the_output_and_needs_no_jax(capsys, monkeypatch, command, expected):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert [text for text in expected if text not in shown] == []


@pytest.mark.parametrize("argv", [["--help"], ["couplet", "--help"]])
def test_help_is_shown_in_any_locale(monkeypatch, argv):
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as caught:
        main(argv)
    stdout.flush()
    assert caught.value.code == 0
    assert b"lower line" in written.getvalue()
