import io
import os
import re
import shlex
import subprocess
import sys

import pytest

from transformer_jax.cli import _parser, main
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


def test_version_names_what_a_report_needs(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    pattern = r"transformer-jax \S+ \(jax [\d.]+, flax [\d.]+, Python 3\.[\d.]+\S*\)\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)


@pytest.mark.parametrize(
    "command",
    ["train", "translate", "classify", "couplet", "evaluate", "runs", "info", "import", "export"],
)
def test_each_help_ends_with_an_example_that_parses(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    example = shown.rpartition("\nexample:\n")[2].replace("\\\n", " ")
    program, *arguments = shlex.split(example)
    assert program == "transformer-jax"
    assert arguments[0] == command
    _parser().parse_known_args(arguments)
    assert max(map(len, shown.splitlines())) <= 80


def test_the_shell_completes_commands_options_and_configs(monkeypatch, tmp_path):
    def completions(line):
        """As bash asks for them, see `register-python-argcomplete`."""
        out = tmp_path / "out"
        environment = {
            **os.environ,
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
            "_ARGCOMPLETE_SHELL": "bash",
        }
        code = "import sys; sys.argv[0] = 'transformer-jax'; from transformer_jax.cli import main; main()"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        return {each.strip() for each in out.read_text().splitlines()}

    assert {"train", "translate"} <= completions("transformer-jax tra")
    assert "--n-best" in completions("transformer-jax translate --n")
    assert completions("transformer-jax train --config mul") == {"multi30k"}
    assert completions("transformer-jax train --config.optim.cl") == {"--config.optim.clip_norm"}
    assert completions("transformer-jax export --to peg") == {"pegasus"}
    assert completions("transformer-jax runs --sort tok") == {"tokens_per_second"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "transformer-jax: error: COMMAND is 'trian'; did you mean train?"),
        (
            ["translate", "--model=x", "--beams", "4"],
            "transformer-jax translate: error: unrecognized arguments: --beams",
        ),
        (["translate", "--model=x", "--beams=4"], "; did you mean --beam?"),
        (["translate", "--model=x", "--bad-lines=no"], "--bad-lines is 'no'; known here: stop, blank"),
        (["translate", "hello"], "required: --model; transformer-jax translate --help lists the options"),
    ],
)
def test_mistakes_name_the_nearest(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
