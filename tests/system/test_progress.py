"""The display of how far work is: a bar on a terminal, lines elsewhere, nothing for short work."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import pytest

from transformer_jax.system import output
from transformer_jax.system.output import ProgressDisplay
from transformer_jax.system.runtime import show_error

ESCAPES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


@pytest.fixture
def told():
    return []


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(output, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(output, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(output, "_FRAME_SECONDS", 0.05)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that tests set."""
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return now


def test_short_work_is_silent(told):
    with ProgressDisplay("lines", "translating", 10, say=told.append) as display:
        display.add(10)
    assert told == []


def test_lines_elsewhere(quick, told):
    with ProgressDisplay("lines", "translating", 1_000_000, say=told.append) as display:
        for _ in range(4):
            display.add(1234)
            time.sleep(0.1)
    assert re.fullmatch(r"[\d,]+ of 1,000,000 lines, [\d,.]+ a second, [\d:]+ left", told[-2])
    assert re.fullmatch(r"4,936 lines in 0:0\d, [\d,]+ a second", told[-1])
    assert len(set(told)) == len(told)


def test_nothing_is_said_of_work_that_failed_or_is_hidden(quick, told):
    with contextlib.suppress(ValueError), ProgressDisplay("none", "translating", 10, say=told.append) as display:
        display.add(5)
        time.sleep(0.2)
        raise ValueError
    assert told == []


def test_speed_and_time_left(clock):
    display = ProgressDisplay("lines", "translating", 200_000, say=print)
    assert display.status() == "0 of 200,000 lines, 0:00 so far"
    clock[0] = 60.0  # spent on compiling
    assert display.status() == "0 of 200,000 lines, 1:00 so far"
    display.add(1_000)
    assert display.status() == "1,000 of 200,000 lines, 1:00 so far"
    for _ in range(10):
        clock[0] += 1
        display.add(250)
    assert display.status() == "3,500 of 200,000 lines, 250 a second, 13:06 left"
    clock[0] += 5  # counts down before the next result
    assert display.status() == "3,500 of 200,000 lines, 250 a second, 13:01 left"


def test_compiling_later_does_not_count_for_long(clock):
    display = ProgressDisplay("lines", "translating", 100_000, say=print)
    display.add(1)
    clock[0] = 30.0
    for _ in range(60):
        clock[0] += 1
        display.add(100)
    assert ", 100 a second, " in display.status()


def test_a_long_work_needs_no_more_memory(clock):
    display = ProgressDisplay("lines", "translating", None, say=print)
    for _ in range(20_000):
        clock[0] += 1
        display.add(3)
    assert display.status() == "60,000 lines, 3.0 a second, 5:33:20 so far"
    assert len(display._samples) <= 2 * output._SAMPLES


def test_threads_and_shares_add_up():
    display = ProgressDisplay("none", "translating", 4_000, say=print)
    report = display.of_share(2)
    threads = [threading.Thread(target=lambda: [report(1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert display.status().startswith("4,000 of 4,000 lines")


class Terminal:
    """A terminal of 80 columns as standard error; `text` is all that has been written to it."""

    def __init__(self, columns=80):
        self.reads, self._writes = pty.openpty()
        fcntl.ioctl(self._writes, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(self._writes, "w", encoding="utf-8")
        self.text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while content := os.read(self.reads, 65536):
                self.text += content.decode("utf-8")

    def close(self):
        self.stream.close()
        self._thread.join()
        os.close(self.reads)


@contextlib.contextmanager
def on_terminal(name="xterm-256color"):
    """Within, standard error is a terminal. Not a fixture: pytest sets it again before each test."""
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", name)
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stderr", terminal.stream)
        yield terminal
        assert sys.stderr is terminal.stream
    terminal.close()


@pytest.mark.parametrize("total", [200_000, 123_456_789, None])
def test_a_bar_on_a_terminal(quick, total):
    with on_terminal() as terminal, ProgressDisplay("bar", "translating", total, say=show_error) as display:
        for i in range(5):
            display.add(12_345)
            time.sleep(0.15)
            if i == 2:
                show_error("a remark about line 3 [not] markup")
    frames = [frame for frame in re.split(r"[\r\n]+", ESCAPES.sub("", terminal.text)) if frame.strip()]
    bars = [frame for frame in frames if frame.startswith("translating ")]
    assert len(set(bars)) >= 5
    assert max(map(len, bars)) <= 80
    assert any("━" in bar for bar in bars)
    of_all = "" if total is None else f" of {total:,}"
    assert any(f"37,035{of_all} lines, " in bar for bar in bars)
    if total is not None:
        assert re.search(r" lines, [\d,]+ a second, [\d:]+ left$", bars[-1])
    # The remark has a line of its own, above a bar that goes on, and the bar is gone in the end.
    place = frames.index("a remark about line 3 [not] markup")
    assert any(frame in bars for frame in frames[place + 1 :])
    assert re.fullmatch(r"61,725 lines in 0:01, [\d,]+ a second", frames[-1])


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(quick):
    with on_terminal("dumb") as terminal, ProgressDisplay("bar", "translating", 100, say=show_error) as display:
        display.add(10)
        time.sleep(0.2)
    assert "\x1b" not in terminal.text
    assert terminal.text.startswith("10 of 100 lines, ")
