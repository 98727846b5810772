"""Bulk work: the lines of the input in, an answer for each out, in order and in bounded memory.

Lines are read, answered and written in windows, so that memory does not grow with the input, and what is done is
written.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from transformer_jax.system import LineError, UserError
from transformer_jax.system.output import Output
from transformer_jax.system.runtime import stdout_bytes
from transformer_jax.tasks.command_line import checked_argument, load_for, progress, share_out
from transformer_jax.tasks.registry import Command

WINDOW = 4096
"""Lines at a time: many, so that those of similar length can be searched together."""
WINDOW_CHARACTERS = 1 << 22
"""Characters at a time, at most one line more."""
PROGRESS_SECONDS = 10
STOP, BLANK = "stop", "blank"


class Line(NamedTuple):
    """A line of the input."""

    number: int
    """From 1."""
    text: str
    prefix: str | None
    """Beginning of its output."""
    refusal: str
    """Why it cannot be done; empty: it can."""


Answer = tuple[str, Sequence[str]]
"""The whole lines of output for a line of the input, and remarks for standard error."""

Item = TypeVar("Item")


def add_lines(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """Add the arguments of the input and the output."""
    parser.add_argument("texts", nargs="*", metavar=metavar, help=f"{help} [the lines of standard input]")
    parser.add_argument(
        "--bad-lines",
        choices=(STOP, BLANK),
        default=STOP,
        help="for a line that cannot be done, such as one that is not UTF-8 or too long: stop before the work begins, "
        "or leave its output blank and count it [stop]",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write to FILE instead, which is replaced when all is done; until then, and after an interruption, the "
        "finished lines are in FILE.partial",
    )


class Lines:
    """The texts given as arguments or, without any, the lines of standard input; those that cannot be read too."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Open the input.

        Raises:
            UserError: if an argument is not UTF-8, or the input or `--prefix-file` cannot be read.
        """
        from transformer_jax.data.readers import read_lines
        from transformer_jax.system import distributed

        self._texts = [checked_argument(text) for text in arguments.texts]
        self._prefix = getattr(arguments, "prefix", None)
        self._prefix = None if self._prefix is None else checked_argument(self._prefix)
        self._prefix_file = getattr(arguments, "prefix_file", None)
        self._prefixes = None if self._prefix_file is None else read_lines(self._prefix_file)
        self.are_checked = arguments.bad_lines == STOP or self._prefixes is not None or distributed.process_count() > 1
        """Whether they are read once before the work begins, too."""
        self._stream = None if self._texts else _standard_input(reread=self.are_checked)
        self._start = self._stream.tell() if self._stream is not None and self.are_checked else 0

    def __iter__(self) -> Iterator[Line]:
        """The lines from the first, every time if they `are_checked`.

        Raises:
            UserError: at the end, if there is another number of prefixes.
        """
        from transformer_jax.data.readers import iterate_lines

        read: Iterator[str | UserError] = iter(self._texts)
        if self._stream is not None:
            if self.are_checked:
                self._stream.seek(self._start)
            read = iterate_lines(self._stream, "<stdin>")
        count = 0
        for count, text in enumerate(_readable(read), start=1):
            prefix = self._prefix
            if self._prefixes is not None:
                prefix = (self._prefixes[count - 1] if count <= len(self._prefixes) else "") or None
            refusal = str(text) if isinstance(text, UserError) else ""
            yield Line(count, "" if isinstance(text, UserError) else text, prefix, refusal)
        if self._prefixes is not None and count != len(self._prefixes):
            raise UserError(
                f"{self._prefix_file} has {len(self._prefixes):,} lines, but the input has {count:,}; they must be "
                "aligned line by line."
            )


def answer_lines(
    command: Command,
    arguments: argparse.Namespace,
    answer: Callable[[Any, list[Line]], Sequence[Answer]],
    blank: Callable[[int], str] = lambda number: "\n",
) -> None:
    """Write the answers to all lines.

    Args:
        command: whose model it is.
        arguments: parsed, those of `add_lines` and `add_model` among them.
        answer: the answers of a model to some lines; all processes share in the work.
        blank: the output for a line that cannot be done, by its number.

    Raises:
        UserError: if the output cannot be written, or a line cannot be done and `--bad-lines` says stop.
    """
    from transformer_jax.system import distributed

    to_file = arguments.output is not None and distributed.is_main()
    output = Output(arguments.output) if to_file else None
    done, refused = 0, Refused()
    began = told = time.monotonic()
    try:
        with output or contextlib.nullcontext():
            model, windows = checked_windows(command, arguments, WINDOW)
            for lines in windows:
                if done and time.monotonic() - told >= PROGRESS_SECONDS:
                    told = time.monotonic()
                    progress(f"{done:,} lines, {done / (told - began):,.1f} a second")
                good = [line for line in lines if not line.refusal]
                answers = iter(distributed.parallel_map(lambda own: answer(model, own), good))
                content = []
                for line in lines:
                    text, remarks = (blank(line.number), ()) if line.refusal else next(answers)
                    content.append(text)
                    refused.count(line)
                    for remark in remarks:
                        progress(remark)
                if output is not None:
                    output.write("".join(content).encode("utf-8"))
                elif distributed.is_main():
                    stdout_bytes("".join(content).encode("utf-8"))
                done += len(lines)
    except BaseException as error:
        if output is not None and output.kept is not None:
            error.add_note(f"The output of the first {done:,} lines is in {output.kept}.")
        raise
    refused.tell()


class Refused:
    """Counts the lines that cannot be done."""

    def __init__(self) -> None:
        """Begin with none."""
        self._number, self._first = 0, ""

    def count(self, line: Line) -> None:
        """Count it, if it cannot be done."""
        self._number += bool(line.refusal)
        self._first = self._first or line.refusal

    def tell(self) -> None:
        """Report them on standard error, if there are any."""
        if self._number:
            progress(f"{self._number:,} lines could not be done, so their output is blank; the first: {self._first}")


def checked_windows(command: Command, arguments: argparse.Namespace, window: int) -> tuple[Any, Iterator[list[Line]]]:
    """The model, and the lines in windows of that many, with the refusals of the model if `--bad-lines` says blank.

    Raises:
        UserError: if a line cannot be done and it says stop, or the processes were given different lines.
    """
    lines = Lines(arguments)
    model = load_for(command, arguments.model)
    stops = arguments.bad_lines == STOP
    if stops:
        for group in _grouped(lines, window):
            for line in _examined(model, group):
                if line.refusal:
                    raise UserError(line.refusal)
    elif lines.are_checked:
        for _ in lines:
            pass  # counts
    share_out(model, arguments, ((line.text, line.prefix, line.refusal) for line in lines) if lines.are_checked else ())
    groups = _grouped(lines, window)
    return model, groups if stops else (_examined(model, group) for group in groups)


def _examined(model: Any, lines: list[Line]) -> list[Line]:
    """The lines with the refusals of the model."""
    readable = [line for line in lines if not line.refusal]
    if not readable or _refusal(model, readable) == "":
        return lines
    return [line if line.refusal else line._replace(refusal=_refusal(model, [line])) for line in lines]


def _refusal(model: Any, lines: list[Line]) -> str:
    prefixes = [line.prefix for line in lines]
    try:
        model.check([line.text for line in lines], **({"prefix": prefixes} if any(prefixes) else {}))
    except LineError as error:  # a model counts from the first text that it is given
        return str(error.numbered(lines[error.number - 1].number))
    except UserError as error:
        return str(error)
    return ""


def _grouped(lines: Iterator[Line] | Lines, size: int) -> Iterator[list[Line]]:
    """Groups of at most `size` lines, and not many more than `WINDOW_CHARACTERS` characters."""
    group: list[Line] = []
    characters = 0
    for line in lines:
        group.append(line)
        characters += len(line.text)
        if len(group) >= size or characters >= WINDOW_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _standard_input(*, reread: bool) -> Any:
    """Standard input, or a copy of it if it must be read again and cannot be."""
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("Standard input is closed; give texts as arguments, or direct a file to it.")
    stream = sys.stdin.buffer
    if not reread or stream.seekable():
        return stream
    copy = tempfile.TemporaryFile()  # noqa: SIM115  (until the program ends)
    try:
        shutil.copyfileobj(stream, copy)
        copy.seek(0)
    except OSError as error:
        raise UserError(f"Standard input cannot be read or copied ({error.strerror}); direct a file to it.") from error
    return copy


def _readable(items: Iterator[Item]) -> Iterator[Item]:
    """The items.

    Raises:
        UserError: if the input cannot be read.
    """
    while True:
        try:
            yield next(items)
        except StopIteration:
            return
        except OSError as error:
            raise UserError(f"Standard input cannot be read ({error.strerror}); direct a file to it.") from error
