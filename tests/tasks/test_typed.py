"""Commands at a terminal: a prompt, an answer for each line, and a quiet end."""

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.outcomes import as_lines
from transformer_jax.tasks.model_folder import load

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import fcntl
import signal
import sys
import termios

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C comes from the controlling terminal
from transformer_jax.cli import main

sys.exit(main())
"""
HINT = "transformer-jax: type a text and press Enter; press Ctrl-D to quit\n"


class Session:
    """A command whose standard streams are a terminal, but for those that are given."""

    def __init__(self, *arguments, **streams):
        self._reads, own = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
            **{"stdin": own, "stdout": own, "stderr": own, **streams},
        )
        os.close(own)
        self.text = ""

    def wait_for_prompts(self, count):
        """Until that many have been shown."""
        ends = time.monotonic() + 120
        while len(re.findall(r"^> ", self.text, re.MULTILINE)) < count:
            assert time.monotonic() < ends, self.text
            self._read()

    def _read(self):
        if select.select([self._reads], [], [], 1)[0]:
            content = os.read(self._reads, 65536).decode("utf-8", "replace").replace("\r", "")
            self.text += re.sub(r"\x1b\[\?[0-9]+[hl]", "", content)

    def type(self, keys):
        os.write(self._reads, keys)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._reads)

    def end(self):
        """The status of the command and all that the terminal showed."""
        ends = time.monotonic() + 120
        with contextlib.suppress(OSError):
            while time.monotonic() < ends:
                self._read()
        return self.process.wait(60), self.text


@pytest.mark.parametrize("options", [["--beam=1"], ["--stream"]])
def test_each_line_is_answered_until_ctrl_d(translator, options):
    answers = load(translator).translate(["abc", "cab"], beam_size=1)
    with Session("translate", "--model", translator, *options) as session:
        for number, keys in enumerate((b"abc\n", b"\n", b"a\xff\n", b"cax\x7fb\n", b"\x04"), start=1):
            session.wait_for_prompts(number)
            session.type(keys)
        status, text = session.end()
    assert status == 0
    assert text.startswith(HINT)
    shown = text.splitlines()
    assert [answer for answer in answers if answer not in shown] == []
    assert "<stdin>, line 3, byte 2 (0xff) is not UTF-8" in text
    assert text.endswith("> \n")


def test_ctrl_c_ends_it(classifier):
    with Session("classify", "--model", classifier) as session:
        session.wait_for_prompts(1)
        time.sleep(1)  # CPython overlooks a signal between the prompt of readline and its wait for a key
        session.type(b"\x03")
        status, text = session.end()
    assert status == 130
    assert text.splitlines()[-1] == "transformer-jax: stopped by Ctrl-C."


def test_answers_that_go_to_a_file_have_no_prompts(couplet_writer, tmp_path):
    model = load(couplet_writer)
    found = [model.search([upper])[0][0] for upper in ("天", "花草")]
    expected = as_lines(f"{best.text}\t{best.score:.4f}" for best in found)
    with (
        (tmp_path / "out").open("wb") as stdout,
        Session("couplet", "--model", couplet_writer, stdout=stdout) as session,
    ):
        for number, keys in enumerate(("天\n", "花草\n", "\x04"), start=1):
            session.wait_for_prompts(number)
            session.type(keys.encode())
        status, text = session.end()
    assert status == 0
    assert text.startswith(HINT)
    assert (tmp_path / "out").read_text(encoding="utf-8") == expected
