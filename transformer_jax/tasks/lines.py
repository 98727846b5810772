"""Bulk work: the lines of the input in, an answer for each out, in order and in bounded memory.

Lines are read, answered and written in windows, so that memory does not grow with the input, and what is done is
written. Lines typed at a terminal are answered one by one.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from transformer_jax.system import BlankLineError, LineError, UserError
from transformer_jax.system.output import Output, Report, chunks
from transformer_jax.system.runtime import Shown, release_memory, stdout_bytes
from transformer_jax.tasks.command_line import (
    TypedLines,
    checked_argument,
    display_of,
    load_for,
    progress,
    share_out,
)
from transformer_jax.tasks.registry import Command

if TYPE_CHECKING:
    from transformer_jax.data.readers import LineReader

WINDOW = 4096
"""Lines at a time: many, so that those of similar length can be searched together."""
WINDOW_CHARACTERS = 1 << 22
"""Characters at a time, at most one line more."""
STOP, BLANK = "stop", "blank"


class Line(NamedTuple):
    """A line of the input."""

    number: int
    """From 1."""
    text: str
    prefix: str | None
    """Beginning of its output."""
    refusal: str
    """Why it cannot be processed; empty if it can."""
    is_blank: bool = False
    """Whether it is refused only because it is blank."""


Answer = tuple[str, Sequence[str]]
"""The whole lines of output for a line of the input, and remarks for standard error."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def add_lines(parser: argparse.ArgumentParser, metavar: str, help: str) -> None:
    """Add the arguments of the input and the output."""
    parser.add_argument("texts", nargs="*", metavar=metavar, help=f"{help} [the lines of standard input]")
    parser.add_argument(
        "--input", metavar="FILE", help="read the lines of FILE, plain or gzip, instead of standard input"
    )
    parser.add_argument(
        "--bad-lines",
        choices=(STOP, BLANK),
        default=STOP,
        help="what to do with a line that cannot be processed (not UTF-8, too long): stop, or write a blank line and "
        "count it. Texts and files are checked up front; a pipe is checked as it is read, so the lines before the bad "
        "one are still answered. Blank lines are never an error [stop]",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write to FILE instead, which is replaced when all is done; until then, and after an interruption, the "
        "finished lines are in FILE.partial",
    )


class Lines:
    """The lines of the input, those that cannot be read too: texts given as arguments, a file, or standard input."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Open the input.

        Raises:
            UserError: if an argument is not UTF-8, the input or `--prefix-file` cannot be read, or their numbers of
                lines are known to differ.
        """
        from transformer_jax.data.readers import open_lines
        from transformer_jax.system import distributed

        texts = [checked_argument(text) for text in arguments.texts]
        self._prefix = getattr(arguments, "prefix", None)
        self._prefix = None if self._prefix is None else checked_argument(self._prefix)
        self._prefix_file = getattr(arguments, "prefix_file", None)
        if texts and arguments.input is not None:
            raise UserError("--input cannot be combined with texts; drop one of them.")
        is_alone = distributed.process_count() == 1
        named = bool(texts) or arguments.input is not None
        self.are_typed = not named and is_alone and sys.stdin is not None and Shown(sys.stdin).isatty()
        """Whether they are typed at a terminal."""
        self._read: list[str] | LineReader = texts
        if not texts:
            reader = open_lines(arguments.input) if named else _standard_input(are_typed=self.are_typed)
            # The processes compare their inputs before they begin.
            self._read = reader if reader.can_seek or is_alone else reader.copied()
        self.total = self._count(self._read)
        """How many there are; None for a pipe, which is read only once."""
        self._prefixes: list[str] | LineReader = []
        self._prefix_count = 0
        if self._prefix_file is not None:
            reader = open_lines(self._prefix_file)
            self._prefixes = reader if reader.can_seek else list(_readable(reader))
            self._prefix_count = sum(1 for _ in _readable(self._prefixes))
            if self.total not in (None, self._prefix_count):
                raise self._misaligned(f"{self.total:,}")

    def _count(self, read: "list[str] | LineReader") -> int | None:
        if isinstance(read, list):
            return len(read)
        return read.count() if read.can_seek else None

    def __iter__(self) -> Iterator[Line]:
        """The lines from the first, every time unless it is a pipe.

        Raises:
            UserError: if the input or the prefixes end before the other.
        """
        prefixes = iter(_readable(self._prefixes))
        count = 0
        for count, text in enumerate(self._read, start=1):
            prefix = self._prefix
            if self._prefix_file is not None:
                if count > self._prefix_count:
                    raise self._misaligned("more")
                prefix = next(prefixes, "") or None
            refusal = str(text) if isinstance(text, UserError) else ""
            yield Line(count, "" if isinstance(text, UserError) else text, prefix, refusal)
        if self._prefix_file is not None and count != self._prefix_count and not self.are_typed:
            raise self._misaligned(f"{count:,}")

    def _misaligned(self, count: str) -> UserError:
        return UserError(
            f"{self._prefix_file} has {self._prefix_count:,} lines, but the input has {count}; they must be aligned "
            "line by line."
        )


def answer_lines(
    command: Command,
    arguments: argparse.Namespace,
    answer: Callable[[Any, list[Line], Report], Sequence[Answer]],
    blank: Callable[[int], str] = lambda number: "\n",
) -> None:
    """Write the answers to all lines.

    Args:
        command: whose model it is.
        arguments: parsed, those of `add_lines` and `add_model` among them.
        answer: the answers of a model to some lines, and reports how many are done; all processes share in the work.
        blank: the output for a line that cannot be done, by its number.

    Raises:
        UserError: if the output cannot be written, or a line cannot be done and `--bad-lines` says stop.
    """
    from transformer_jax.system import distributed

    _require_another_file(arguments)
    to_file = arguments.output is not None and distributed.is_main()
    output = Output(arguments.output) if to_file else None
    done, refused = 0, Refused()
    try:
        with output or contextlib.nullcontext():
            model, lines, windows = checked_windows(command, arguments, WINDOW)
            at_terminal = Shown(sys.stdout).isatty() if output is None else output.isatty()
            with display_of(command.working, lines.total, beside=at_terminal, hidden=lines.are_typed) as display:
                report = display.of_share(distributed.process_count())
                for window in windows:
                    good = [line for line in window if not line.refusal]
                    answers = iter(distributed.parallel_map(lambda own: answer(model, own, report), good))
                    content = []
                    for line in window:
                        text, remarks = (blank(line.number), ()) if line.refusal else next(answers)
                        content.append(text)
                        refused.count(line)
                        for remark in remarks:
                            progress(remark)
                    for chunk in chunks("".join(content).encode("utf-8")):
                        if output is not None:
                            output.write(chunk)
                        elif distributed.is_main():
                            stdout_bytes(chunk)
                    done += len(window)
                    display.reach(done)
                    if not lines.are_typed:
                        release_memory()
    except BaseException as error:
        if output is not None and output.kept is not None:
            error.add_note(f"The output of at least the first {done:,} lines is in {output.kept}.")
        raise
    refused.tell()


def map_windows(
    work: Callable[[list[Item], Report], Sequence[Result]],
    items: Sequence[Item],
    doing: str,
    noun: str = "lines",
    *,
    window: int | None = None,
) -> list[Result]:
    """Apply `work` to all items, window by window, and display how many are done; all processes share in the work."""
    from transformer_jax.system import distributed

    results: list[Result] = []
    with display_of(doing, len(items), noun) as display:
        report = display.of_share(distributed.process_count())
        size = WINDOW if window is None else window
        for first in range(0, len(items), size or 1):
            results += distributed.parallel_map(lambda own: work(own, report), items[first : first + size])
            display.reach(len(results))
            release_memory()
    return results


class Refused:
    """Counts the lines that cannot be done."""

    def __init__(self) -> None:
        """Begin with none."""
        self._numbers: Counter[bool] = Counter()
        self._first: dict[bool, Line] = {}

    def count(self, line: Line) -> None:
        """Count it, if it cannot be done."""
        if line.refusal:
            self._numbers[line.is_blank] += 1
            self._first.setdefault(line.is_blank, line)

    def tell(self) -> None:
        """Report them on standard error, if there are any."""
        for is_blank, first in sorted(self._first.items(), reverse=True):
            number = self._numbers[is_blank]
            noun = "line" if number == 1 else "lines"
            if is_blank:
                progress(f"{number:,} blank {noun} in the input, blank in the output; the first: line {first.number:,}")
            else:
                what = f"{number:,} {noun} could not be processed and are blank in the output"
                progress(f"{what}; the first: {first.refusal}")


def checked_windows(
    command: Command, arguments: argparse.Namespace, window: int
) -> tuple[Any, Lines, Iterator[list[Line]]]:
    """The model, and the lines, in windows of that many, with the refusals of the model.

    If `--bad-lines` says stop, texts and files are checked at once. A pipe is checked window by window, and the last
    window ends before the first line that cannot be done.

    Raises:
        UserError: if a line cannot be done and it says stop, or the processes were given different lines.
    """
    lines = Lines(arguments)
    model = load_for(command, arguments.model)
    stops = arguments.bad_lines == STOP
    if stops and lines.total is not None:
        with display_of("checking", lines.total, "lines checked") as display:
            for group in _windows(model, lines, WINDOW, stops=True):
                display.add(len(group))
    share_out(model, arguments, lines if lines.total is not None else ())
    return model, lines, _windows(model, lines, window, stops=stops)


def _windows(model: Any, lines: Lines, size: int, *, stops: bool) -> Iterator[list[Line]]:
    """The lines in windows, with the refusals of the model; of what is typed, only lines that can be answered.

    Raises:
        UserError: at a line that cannot be done, if it stops.
    """
    from transformer_jax.data.readers import is_blank

    if lines.are_typed:
        for line in lines:
            [line] = _examined(model, [line])
            if line.refusal and not line.is_blank:
                progress(line.refusal)
            elif not is_blank(line.text):
                yield [line]
        return
    for group in _grouped(lines, size):
        group = _examined(model, group)
        bad = next((place for place, line in enumerate(group) if line.refusal and not line.is_blank), None)
        if bad is not None and stops:
            if bad:
                yield group[:bad]
            raise UserError(group[bad].refusal)
        yield group


def _examined(model: Any, lines: list[Line]) -> list[Line]:
    """The lines with the refusals of the model."""
    readable = [line for line in lines if not line.refusal]
    if not readable or _refusal(model, readable) is None:
        return lines
    return [line if line.refusal else _refused(line, _refusal(model, [line])) for line in lines]


def _refused(line: Line, error: UserError | None) -> Line:
    if error is None:
        return line
    return line._replace(refusal=str(error), is_blank=isinstance(error, BlankLineError))


def _refusal(model: Any, lines: list[Line]) -> UserError | None:
    prefixes = [line.prefix for line in lines]
    try:
        model.check([line.text for line in lines], **({"prefix": prefixes} if any(prefixes) else {}))
    except LineError as error:  # a model counts from the first text that it is given
        return error.numbered(lines[error.number - 1].number)
    except UserError as error:
        return error
    return None


def _grouped(lines: Lines, size: int) -> Iterator[list[Line]]:
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


def _standard_input(*, are_typed: bool) -> "LineReader":
    from transformer_jax.data.readers import LineReader

    if sys.stdin is None or sys.stdin.closed:
        raise UserError("Standard input is closed; give texts as arguments, or direct a file to it.")
    if are_typed:
        return LineReader(TypedLines(), can_seek=False)
    return LineReader(sys.stdin.buffer, can_seek=sys.stdin.buffer.seekable())


def _readable(lines: "Iterable[str | UserError]") -> Iterator[str]:
    """The lines.

    Raises:
        UserError: at the first that cannot be read.
    """
    for line in lines:
        if isinstance(line, UserError):
            raise line
        yield line


def _require_another_file(arguments: argparse.Namespace) -> None:
    """Refuse to write to the file that is read.

    Raises:
        UserError: if they are the same.
    """
    from transformer_jax.system.files import as_path

    if arguments.input is None or arguments.output is None:
        return
    read, written = as_path(arguments.input), as_path(arguments.output)
    is_same = read == written
    if isinstance(read, Path) and isinstance(written, Path):
        with contextlib.suppress(OSError):
            is_same = read.is_file() and os.path.samefile(read, written)
    if is_same:
        raise UserError(f"--output {arguments.output} is the file that --input names; name another.")
