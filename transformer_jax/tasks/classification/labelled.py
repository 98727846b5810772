"""Labelled texts from CSV, TSV and JSON Lines files, plain or gzip."""

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformer_jax.data.readers import is_blank, read_lines
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
"""In the order of the numbers 1 to 4 in AG News's files."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 2**31 - 1  # Python's own limit is 131,072 characters
_COLUMNS_SHOWN, _NAME_SHOWN = 10, 40
_LINE_BREAKING = ("Cc", "Zl", "Zp")  # Unicode categories of control characters and line separators


class Columns(NamedTuple):
    """Which columns of a table, or fields of JSON Lines, are text and label.

    Names refer to the header, or to JSON fields; numbers, from 1, to the columns of a table without a header.
    """

    text_columns: tuple[str, ...] = ("text",)
    label_column: str = "label"

    @property
    def are_numbers(self) -> bool:
        """Whether all columns are given by number."""
        return all(column.isdecimal() for column in (*self.text_columns, self.label_column))


TEXT_AND_LABEL = Columns()
AG_NEWS_COLUMNS = Columns(("2", "3"), "1")
"""Class, title and description, without a header."""
AG_NEWS_EXTRA_COLUMNS = Columns(("3",), "1")
"""Class, kind of text and text, without a header: further texts for AG News."""


class Labelled(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


class _Row(NamedTuple):
    where: str
    """File and row, for messages."""
    cells: list[str]


def read_labelled(
    path: str | AnyPath,
    *,
    classes: Sequence[str] | None = None,
    columns: Columns = TEXT_AND_LABEL,
    report: Callable[[str], None] = lambda sentence: None,
) -> list[Labelled]:
    """Read the labelled texts of a file; its name determines its form, and `.gz` may follow.

    - `.jsonl`: an object on each line, with the fields `columns` (numbers stand for "text" and "label").
    - `.csv`, `.tsv`: a header and rows or, where `columns` are numbers, rows alone.

    Several columns of text are joined by a space. Fields of `.csv` may be quoted, quotes inside them doubled; in `.tsv`
    a quote is an ordinary character. Empty lines are skipped. The case of file suffixes and of names in a header is
    ignored.

    Args:
        path: the file.
        classes: names of the classes, if known; each label must be one of them. For AG News's classes, in their order,
            labels may also be numbers from 1, as in its own files.
        columns: of text and label.
        report: called with a sentence about the columns that are used and those that are not.

    Raises:
        UserError: naming the file and the row (a header is row 1), if a label is unknown or contains a line break, a
            column is missing, a text empty, or JSON or quoting broken; also if the file cannot be read or has no rows.
    """

    def tell(columns: Columns, names: Sequence[str]) -> None:
        report(f"{path}: {_used(columns, names)}")

    suffix = _suffix(path)
    if suffix == ".jsonl":
        found = _from_json(path, TEXT_AND_LABEL if columns.are_numbers else columns, tell)
    elif suffix in _DELIMITERS:
        found = _from_table(list(_rows(path, suffix)), columns, tell)
    else:
        raise UserError(f"{path} has no known suffix; name a file that ends in .csv, .tsv or .jsonl, or these and .gz.")
    return _checked(path, found, classes)


def join_columns(columns: Iterable[str]) -> str:
    """Columns of text joined by a space, each stripped; empty ones are left out."""
    return " ".join(stripped for column in columns if (stripped := column.strip()))


def _used(columns: Columns, names: Sequence[str]) -> str:
    """Which of the columns of a file are used."""
    texts, label = columns
    used = {name.strip().lower() for name in (*texts, label)}
    unused = [name.strip() for name in names if name.strip().lower() not in used]
    kind = "column " if columns.are_numbers else ""
    shown = f"text from {kind}{', '.join(texts)}, label from {kind}{label}"
    return f"{shown}; not used: {', '.join(unused[:_COLUMNS_SHOWN])}" if unused else shown


def _suffix(path: str | AnyPath) -> str:
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _checked(
    path: str | AnyPath, found: Iterable[tuple[str, str, str]], classes: Sequence[str] | None
) -> list[Labelled]:
    """Records of (place, label, text), each checked."""
    records = []
    for where, label, text in found:
        if is_blank(text):
            raise UserError(f"{where}: the text is empty; add it or delete the row.")
        if is_blank(label):
            raise UserError(f"{where}: the label is empty; add it or delete the row.")
        if any(unicodedata.category(character) in _LINE_BREAKING for character in label.strip()):
            raise UserError(f"{where}: the label {label.strip()!r} has control characters; write it without.")
        if "```" in label:  # it ends up in titles of READMEs
            raise UserError(f"{where}: the label {label.strip()!r} has three backticks in a row; write it without.")
        records.append(Labelled(text.strip(), _class_name(where, label.strip(), classes)))
    if not records:
        raise UserError(f"{path} has no rows; name a file with labelled texts.")
    return records


def _class_name(where: str, label: str, classes: Sequence[str] | None) -> str:
    if classes is None or label in classes:
        return label
    # In users' own files the order of the classes has no relation to numbers.
    if tuple(classes) == AG_NEWS_CLASSES:
        by_number = {str(number): name for number, name in enumerate(classes, start=1)}
        if label in by_number:
            return by_number[label]
    raise UserError(f"{where}: the label {label!r} is unknown; known here: {', '.join(classes)}.")


def _from_json(
    path: str | AnyPath, columns: Columns, report: Callable[[Columns, Sequence[str]], None]
) -> Iterator[tuple[str, str, str]]:
    is_first = True
    for number, line in enumerate(read_lines(path), start=1):
        if is_blank(line):
            continue
        where = f"{path}, row {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            cause = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{where}: broken JSON ({cause}); write one object per line.") from error
        if not isinstance(record, dict):
            raise UserError(f'{where}: not a JSON object; write {{"text": "...", "label": "..."}}.')
        if is_first:
            report(columns, list(record))
            is_first = False
        for name, option in _named(columns):
            if name not in record:
                raise UserError(f'{where}: "{name}" is missing, {_shown(record)}; add it, or {_remedy(option)}.')
        texts, label = [record[name] for name in columns.text_columns], record[columns.label_column]
        for name, text in zip(columns.text_columns, texts, strict=True):
            if not isinstance(text, str):
                raise UserError(f'{where}: "{name}" is {json.dumps(text):.40}, but must be a string.')
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise UserError(
                f'{where}: "{columns.label_column}" is {json.dumps(label):.40}, but must be a string or a whole number.'
            )
        try:
            "".join([*texts, str(label)]).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: half a surrogate pair (\\ud800 to \\udfff); write the whole character."
            ) from error
        yield where, str(label), join_columns(texts)


def _from_table(
    rows: list[_Row], columns: Columns, report: Callable[[Columns, Sequence[str]], None]
) -> Iterator[tuple[str, str, str]]:
    if not rows:
        return
    where, first = rows[0]
    *texts, label = (_place(where, first, name, option, columns) for name, option in _named(columns))
    numbers = range(1, len(first) + 1)
    report(columns, list(map(str, numbers)) if columns.are_numbers else first)
    for row_where, cells in rows if columns.are_numbers else rows[1:]:
        if len(cells) != len(first):
            raise UserError(
                f"{row_where}: {len(cells)} columns, but the first row has {len(first)}; "
                "add the missing ones, or quote fields that contain the separator."
            )
        yield row_where, cells[label], join_columns(cells[column] for column in texts)


def _named(columns: Columns) -> list[tuple[str, str]]:
    """Each column with the option that names it, the label last."""
    return [*((name, "text_columns") for name in columns.text_columns), (columns.label_column, "label_column")]


def _place(where: str, first: list[str], name: str, option: str, columns: Columns) -> int:
    """Index of a column, given the first row."""
    if columns.are_numbers:
        if not 1 <= int(name) <= len(first):
            raise UserError(f"{where}: there is no column {name}, {_shown(first)}; {_remedy(option)}.")
        return int(name) - 1
    header = [cell.strip().lower() for cell in first]
    if name.strip().lower() not in header:
        raise UserError(
            f"{where}: no column is named {name!r}, {_shown(first)}; {_remedy(option)} (without a header: numbers "
            "from 1 for all columns)."
        )
    return header.index(name.strip().lower())


def _shown(names: Iterable[str]) -> str:
    cells = [f"{name.strip()[:_NAME_SHOWN]!r}" for name in names]
    more = ", ..." if len(cells) > _COLUMNS_SHOWN else ""
    return f"only {', '.join(cells[:_COLUMNS_SHOWN])}{more}" if cells else "there is none"


def _remedy(option: str) -> str:
    return f"set config.data.{option}, or --{option.replace('_', '-')} of evaluate"


def _rows(path: str | AnyPath, suffix: str) -> Iterator[_Row]:
    """All rows but empty lines, which are counted as rows, as in a spreadsheet."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(
        (line + "\n" for line in read_lines(path)),
        delimiter=_DELIMITERS[suffix],
        quoting=csv.QUOTE_MINIMAL if suffix == ".csv" else csv.QUOTE_NONE,
        strict=True,
    )
    row = 0
    while True:
        row, line = row + 1, reader.line_num + 1
        where = f"{path}, row {row}" if line == row else f"{path}, row {row} (line {line})"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "new-line" in str(error):
                raise UserError(
                    f"{where}: a carriage return alone ends a line; save the file with line ends of \\n or \\r\\n."
                ) from error
            raise UserError(f"{where}: broken quoting ({error}); close the quotes, and double those inside.") from error
        if cells is None:
            return
        if cells:
            yield _Row(where, cells)
