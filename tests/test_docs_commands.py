"""Every shell command in the documentation is one that its program takes."""

import contextlib
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, COMPILED
from tests.test_docs import DOCUMENTS, REPOSITORY, each_document, fences, read
from transformer_jax import cli
from transformer_jax.config import from_config_dict, load_config_file

PROJECT = tomllib.loads(read(REPOSITORY / "pyproject.toml"))["project"]
FOREIGN = {
    "cd",
    "curl",
    "docker",
    "export",
    "for",
    "gcloud",
    "git",
    "hf",
    "sbatch",
    "sh",
    "tail",
    "tensorboard",
    "wait",
    "zcat",
}
"""Commands of other programs, which no test of ours can check."""
BEFORE_A_COMMAND = {"do", "nohup", "srun", "!"}
IN_TRAINING = ("train", "sweep")


def commands(block):
    """The commands of a shell script, each as its list of arguments, without redirections and variables."""
    text = re.sub(r"(^|\s)#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    text = re.sub(r"^[!%]", "", text, flags=re.MULTILINE)  # of notebooks
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&<>()\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words, skips = [], False
    for token in [*lexer, "\n"]:
        if set(token) <= set("<>&") and set(token) & set("<>"):
            skips = True
            if token == ">&" and words and words[-1].isdecimal():  # 2>&1
                words.pop()
        elif set(token) <= set(";|&()\n"):
            if words:
                yield words
            words, skips = [], False
        elif skips:
            skips = False
        elif words or (token not in BEFORE_A_COMMAND and not re.match(r"[A-Z_]+=", token)):
            words.append(token)


def all_commands(block):
    """Those of a script, and those that are passed to another machine."""
    for words in commands(block):
        yield words
        for word in words:
            if word.startswith("--command="):
                yield from all_commands(word.partition("=")[2])


def check(words):
    """Require that the program takes these arguments."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "python" and arguments[:1] == ["-m"]:
        program, arguments = arguments[1], arguments[2:]
    if program == "python" and arguments[0] != "train.py":
        assert (REPOSITORY / arguments[0]).is_file()
    elif program == "python":
        check_ours(["train", *arguments[1:]])
    elif program in ("transformer-jax", "transformer_jax"):
        check_ours(arguments)
    elif program == "benchmarks":
        names = [name for name in arguments if not name.startswith("-")][:1]
        assert set(names) <= {*BENCHMARKS, COMPILED, "all"}
    elif program in ("pip", "uv"):
        named = re.findall(r"(?:^|\s)(?:transformer-jax|\.)\[([\w,]+)\]", " ".join(arguments))
        assert {extra for each in named for extra in each.split(",")} <= set(PROJECT["optional-dependencies"])
    else:
        assert program in FOREIGN | {"done", "pytest"}


def check_ours(arguments):
    """Parse a command line of ours, and the fields that it sets."""
    assert arguments[0] in cli._parser().commands
    if "--help" in arguments:
        return
    arguments = [re.sub(r"\$\w+", "1", argument) for argument in arguments]
    given, overrides = cli._parser().parse_known_args(arguments)
    if arguments[0] not in IN_TRAINING:
        assert overrides == []
        return
    config = load_config_file("numerals")
    shipped = (given.config or "").partition(":")[0]
    if (REPOSITORY / "configs" / f"{shipped}.py").is_file():
        config = load_config_file(given.config)
    from_config_dict(cli._override(config, overrides, arguments[0]))


@each_document
def test_every_shell_command_is_taken_by_its_program(path):
    for block in fences(read(path), "sh"):
        for words in all_commands(block):
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                try:
                    check(words)
                except SystemExit:
                    pytest.fail(f"{shlex.join(words)}: {stderr.getvalue()}")


def test_there_are_commands_to_check():
    found = [words for path in DOCUMENTS for block in fences(read(path), "sh") for words in all_commands(block)]
    ours = {words[1] for words in found if Path(words[0]).name == "transformer-jax"}
    assert ours == set(cli._parser().commands)
    assert len(found) > 100


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("a b | c 'd e' > f && g", [["a", "b"], ["c", "d e"], ["g"]]),
        ("X=1 a \\\n  b  # c\nd < e", [["a", "b"], ["d"]]),
        ("for i in 0 1; do\n  a $i &\ndone\nwait", [["for", "i", "in", "0", "1"], ["a", "$i"], ["done"], ["wait"]]),
        ("!pip install x\nsrun a", [["pip", "install", "x"], ["a"]]),
    ],
)
def test_scripts_are_taken_apart(block, expected):
    assert list(commands(block)) == expected


@pytest.mark.parametrize(
    "words",
    [
        "transformer-jax train --config.optim.rate=1",
        "transformer-jax train --config.model.d_model=1",
        "transformer-jax translate --model x --beams 3",
        "transformer-jax tranlate --model x",
        "python examples/none.py",
        "python -m benchmarks speed",
        "pip install 'transformer-jax[all]'",
        "make docs",
    ],
)
def test_the_check_sees_what_is_wrong(words, capsys):
    with pytest.raises((AssertionError, SystemExit, cli.UserError)):
        check(shlex.split(words))


TINY = [f"--config.model.{name}=16" for name in ("d_model", "d_ff")]
TINY += [f"--config.training.{name}=2" for name in ("num_steps", "eval_every", "log_every", "checkpoint_every")]
TINY += ["--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1", "--config.optim.warmup_steps=1"]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["own_data.md", "zh/own_data.md"])
def test_the_commands_for_data_of_ones_own_run(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    text = read(REPOSITORY / "docs" / page)
    for sample in re.finditer(r"^```[tc]sv\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        name = re.findall(r"`(\w+\.[tc]sv)`", text[: sample.start()])[-1]
        Path(name).write_text(sample[1], encoding="utf-8")
    ran = 0
    for block in fences(text, "sh"):
        for words in commands(block):
            assert cli.main([*words[1:], *(TINY if words[1] == "train" else [])]) == 0, capfd.readouterr().err
            ran += 1
    assert ran == 9
