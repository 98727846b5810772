"""What a person names as output is written as it is, and output that fails ends nothing but what needs it."""

import contextlib
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.commands import classifier, couplet_writer, run, translator  # noqa: F401
from transformer_jax.cli import main
from transformer_jax.system import UserError
from transformer_jax.system.files import as_path, new_folder
from transformer_jax.system.output import Output, write_output
from transformer_jax.system.runtime import Shown, run_program

ROOT = Path(__file__).resolve().parent.parent.parent
FULL = Path("/dev/full")
linux = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_has_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_output(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "new"), names(tmp_path)) == (0o640, ["new"])


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o755])
def test_a_file_keeps_its_mode(tmp_path, kept):
    path = tmp_path / "out"
    path.write_bytes(b"old, and longer")
    path.chmod(kept)
    write_output(path, b"new")
    assert (path.read_bytes(), mode(path), names(tmp_path)) == (b"new", kept, ["out"])


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, exists):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "out", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to("there/out")
    write_output(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "there") == ["out"]


def test_a_fifo_is_written_to(run, tmp_path):  # noqa: F811
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    status, out, err = run("translate", "--output", path, "abc", "")
    reader.join()
    assert (status, out, err) == (0, "", "")
    assert read[0].count(b"\n") == 2
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_open_files_are_written_where_they_are(tmp_path):
    """As `--output >(cmd)` and `--output /dev/stdout >> FILE` are."""
    with (tmp_path / "log").open("ab") as stream:
        stream.write(b"before\n")
        stream.flush()
        write_output(f"/dev/fd/{stream.fileno()}", b"new\n")
        stream.write(b"after\n")
    assert (tmp_path / "log").read_bytes() == b"before\nnew\nafter\n"
    reads, writes = os.pipe()
    write_output(f"/dev/fd/{writes}", b"new")
    os.close(writes)
    assert os.read(reads, 10) == b"new"
    os.close(reads)


@linux
def test_devices_stay(tmp_path):
    write_output("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(UserError, match="/dev/full cannot be written"):
        write_output("/dev/full", b"x")
    assert stat.S_ISCHR(FULL.stat().st_mode)


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(str(tmp_path / "socket"))
    for name in ("folder", "no/out", "file/out", "loop", "socket", "new/", "file/", "no/.", "folder/.."):
        with pytest.raises(UserError, match="cannot be written"):
            Output(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match="is empty"):
        Output("")
    with pytest.raises(UserError, match="can't be the name"):
        Output(f"{tmp_path}/a\0b")
    with (tmp_path / "file").open("rb") as stream, pytest.raises(UserError, match="Bad file descriptor"):
        Output(f"/dev/fd/{stream.fileno()}")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root may write all
        with pytest.raises(UserError, match="Permission denied"):
            Output(str(tmp_path / "file"))
    assert names(tmp_path) == ["file", "folder", "loop", "socket"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_in_a_folder_that_takes_no_others(tmp_path, monkeypatch):
    path = tmp_path / "out"
    path.write_bytes(b"old, and longer")
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *_: real(tmp_path / "none", path))
    with pytest.raises(UserError, match="cannot be written"):
        write_output(path, b"new")
    assert (tmp_path / "out.partial").read_bytes() == b"new"
    (tmp_path / "out.partial").unlink()

    def busy(*_):
        raise OSError(16, "Device or resource busy")  # a mount point

    monkeypatch.setattr(os, "replace", busy)
    write_output(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["out"])


def test_what_an_interrupted_command_left_stays(tmp_path):
    left = tmp_path / "out.partial"
    left.write_bytes(b"hours of work")
    with pytest.raises(UserError, match=r"out\.partial exists, perhaps .* move it away or delete it"):
        Output(str(tmp_path / "out"))
    assert (left.read_bytes(), names(tmp_path)) == (b"hours of work", ["out.partial"])
    left.write_bytes(b"")
    write_output(tmp_path / "out", b"new")
    assert ((tmp_path / "out").read_bytes(), names(tmp_path)) == (b"new", ["out"])


def test_two_commands_do_not_write_one_file(tmp_path):
    path = tmp_path / "out"
    with Output(str(path)) as first:
        first.write(b"first")
        with pytest.raises(UserError, match="another command is writing it"):
            write_output(path, b"second")
    assert (path.read_bytes(), names(tmp_path)) == (b"first", ["out"])


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_output("~/out", b"x")
    with new_folder("~/folder"):
        pass
    assert names(tmp_path) == ["folder", "out"]
    assert as_path("~/x") == tmp_path / "x"
    assert as_path("a~/x") == Path("a~/x")


def test_a_name_that_is_a_slip_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~nobody.here/x", "~nobody.here"):
        with pytest.raises(UserError, match=rf"user who is unknown here; write \./{name} if you mean that"):
            as_path(name)
    for name in ("", " ", "\t"):
        with pytest.raises(UserError, match="is empty"):
            as_path(name)
    (tmp_path / "~nobody.here").mkdir()
    assert as_path("~nobody.here/x") == Path("~nobody.here/x")


class Broken:
    encoding = "ascii"

    def isatty(self):
        return True

    def fileno(self):
        raise OSError(9, "Bad file descriptor")

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [None, Broken()])
def test_what_is_shown_never_fails(stream, monkeypatch):
    shown = Shown(stream)
    assert shown.isatty() == (stream is not None)
    print("x", file=shown, flush=True)
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_program("train.py", lambda: 0, needs_output=False) == 0
    if stream is not None:
        assert run_program("transformer-jax", lambda: 0) == 2


ODD_NAME = "no\x1b[31m\x07\x9b\u202esuch"
ESCAPED = r"no\x1b[31m\x07\x9b\u202esuch"


def test_an_error_cannot_control_the_terminal(run, capfdbinary):  # noqa: F811
    for arguments in (["--prefix-file", ODD_NAME, "a"], ["--conventions", ODD_NAME, "a"]):
        status, out, err = run("translate", *arguments)
        assert (status, out) == (2, "")
        assert ESCAPED in err
        assert err.removesuffix("\n").isprintable()
    for arguments in (["translate", "--model=x", f"--{ODD_NAME}"], [ODD_NAME], ["classify", f"--bad-lines={ODD_NAME}"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        err = capfdbinary.readouterr().err.decode()
        assert ESCAPED.removeprefix("no") in err.replace("\\\\", "\\")  # argparse shows some by `repr`
        assert err.replace("\n", "").isprintable()


def shell(command, **environment):
    return subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


CLI = f"{sys.executable} -c 'import sys; from transformer_jax.cli import main; sys.exit(main())'"


@linux
@pytest.mark.parametrize(
    ("redirect", "status", "expected"),
    [
        ("> /dev/full", 2, "transformer-jax: error: Standard output cannot be written (No space left on device)"),
        ("| (exec <&-; sleep 3)", 141, ""),
        (">&- 2> /dev/full", 0, ""),
    ],
)
def test_help_that_cannot_be_shown(redirect, status, expected):
    found = shell(f"{CLI} couplet --help {redirect}; exit ${{PIPESTATUS[0]}}", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stdout) == (status, "")
    assert found.stderr.startswith(expected)
    assert found.stderr.count("\n") == bool(expected)


@linux
@pytest.mark.parametrize("redirect", ["> /dev/full", ">&-"])
def test_a_translation_that_cannot_be_written(translator, redirect):  # noqa: F811
    found = shell(f"{CLI} translate --model {translator} abc {redirect}")
    assert found.returncode == 2
    assert found.stderr.startswith("transformer-jax: error: Standard output cannot be written (")
    assert found.stderr.count("\n") == 1


def test_standard_input_that_is_closed():
    found = shell(f"{CLI} translate --model none <&-")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("transformer-jax: error: Standard input is closed; ")
    assert found.stderr.count("\n") == 1


@linux
@pytest.mark.parametrize("redirect", ["> /dev/full 2>&-", pytest.param(">&- 2> /dev/full", marks=pytest.mark.slow)])
def test_output_that_fails_ends_no_training(tmp_path, redirect):
    lines = [(f"{i % 10} {i % 7}\n", f"{i % 7} {i % 10}\n") for i in range(70)]
    arguments = [f"--workdir={tmp_path / 'run'}", "--config.data.name=text", "--config.tokenizer.kind=char"]
    for split in ("train", "validation"):
        for side, written in zip(("source", "target"), zip(*lines, strict=True), strict=True):
            path = tmp_path / f"{split}.{side}"
            path.write_text("".join(written), encoding="utf-8")
            arguments.append(f"--config.data.{split}_{side}={path}")
    arguments += [f"--config.model.{name}=8" for name in ("d_model", "d_ff")]
    arguments += [f"--config.model.{name}=1" for name in ("num_heads", "num_encoder_layers", "num_decoder_layers")]
    arguments += [f"--config.data.{name}=16" for name in ("max_length", "row_length")]
    arguments += ["--config.data.tokens_per_batch=64", "--config.decoding.max_extra_tokens=1"]
    arguments += [f"--config.training.{name}=2" for name in ("num_steps", "eval_every", "log_every")]
    command = shlex.join([sys.executable, "train.py", *arguments])
    assert shell(f"{command} {redirect}", PYTHONIOENCODING="ascii").returncode == 0
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
