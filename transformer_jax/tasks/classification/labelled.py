"""Labelled texts from CSV, TSV and JSON Lines files, plain or gzip."""

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transformer_jax.data.readers import read_lines
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath

AG_NEWS_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
"""In the order of the numbers 1 to 4 in AG News's files."""

LABEL_COLUMNS = ("label", "class", "category", "class index", "labels", "sentiment", "target", "topic")
TEXT_COLUMNS = ("text", "review", "sentence")
TITLE_COLUMNS = ("title", "headline")
KINDS = ("joined", "description")
"""What the second column of a `"class","kind","text"` file may say."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 2**31 - 1  # Python's own limit is 131,072 characters
_ROWS_TO_TELL_A_HEADER = 10
_LINE_BREAKING = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and separators of lines


class Labelled(NamedTuple):
    """A text and the name of its class."""

    text: str
    label: str


class _Row(NamedTuple):
    where: str
    """File and row, for messages."""
    cells: list[str]


def read_labelled(path: str | AnyPath, *, classes: Sequence[str] | None = None) -> list[Labelled]:
    """Read the labelled texts of a file, whose name tells its form; `.gz` may follow.

    - `.jsonl`: an object with "text" and "label" on each line.
    - `.csv`, `.tsv` with a header: the label stands in the first of `LABEL_COLUMNS` that there is; the text in the
      first of `TEXT_COLUMNS`, else in `title` (or `headline`) and `description`, as many of them as there are.
    - `.csv`, `.tsv` whose first row has no such name (AG News's own form): the label stands in the first column, the
      text in all others.

    Several columns of text are joined by a space. Fields of `.csv` may be quoted, quotes inside them doubled; in `.tsv`
    a quote is a character like any other. Empty lines are skipped; case does not matter in names of files and columns.

    Args:
        path: of the file.
        classes: names of the classes, if they are known, of which each label is then one; for AG News's classes, in
            their order, also a number from 1, as in its own files.

    Raises:
        UserError: naming the file and the row (a header is row 1), if a label is unknown or not of one line, a column
            missing, a text empty, or JSON or quoting broken; also if the file cannot be read or has no rows, or
            its first row looks like a header of names that are not known.
    """
    suffix = _suffix(path)
    if suffix == ".jsonl":
        found = _from_json(path)
    elif suffix in _DELIMITERS:
        rows = list(_rows(path, suffix))
        found = _from_table(rows, check_header=classes is None)
    else:
        raise UserError(f"{path} is of no known form; name a file that ends in .csv, .tsv or .jsonl, or these and .gz.")
    return _checked(path, found, classes)


def read_extra(path: str | AnyPath, classes: Sequence[str]) -> list[Labelled]:
    """Read further training texts: the CSV columns class, kind and text without a header, or as `read_labelled`.

    The first form is told by its second column, which holds nothing but the words of `KINDS`; it is ignored.

    Raises:
        UserError: as `read_labelled`.
    """
    if _suffix(path) == ".csv":
        rows = list(_rows(path, ".csv"))
        if rows and all(len(row.cells) == 3 and row.cells[1] in KINDS for row in rows):
            return _checked(path, ((row.where, row.cells[0], row.cells[2]) for row in rows), classes)
    return read_labelled(path, classes=classes)


def join_columns(columns: Iterable[str]) -> str:
    """Columns of text joined by a space, without the blanks around each; empty ones are left out."""
    return " ".join(stripped for column in columns if (stripped := column.strip()))


def _suffix(path: str | AnyPath) -> str:
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _checked(
    path: str | AnyPath, found: Iterable[tuple[str, str, str]], classes: Sequence[str] | None
) -> list[Labelled]:
    """The records of (place, label, text), if all is well with them."""
    records = []
    for where, label, text in found:
        if not text.strip():
            raise UserError(f"{where}: the text is empty; add it or delete the row.")
        if not label.strip():
            raise UserError(f"{where}: the label is empty; add it or delete the row.")
        if any(unicodedata.category(character) in _LINE_BREAKING for character in label.strip()):
            raise UserError(f"{where}: the label {label.strip()!r} has control characters; write it without.")
        records.append(Labelled(text.strip(), _class_name(where, label.strip(), classes)))
    if not records:
        raise UserError(f"{path} has no rows; name a file with labelled texts.")
    return records


def _class_name(where: str, label: str, classes: Sequence[str] | None) -> str:
    if classes is None or label in classes:
        return label
    # The classes of a person's own files are in an order that says nothing about numbers.
    if tuple(classes) == AG_NEWS_CLASSES:
        by_number = {str(number): name for number, name in enumerate(classes, start=1)}
        if label in by_number:
            return by_number[label]
    raise UserError(f"{where}: the label {label!r} is unknown; known here: {', '.join(classes)}.")


def _from_json(path: str | AnyPath) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            cause = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{where}: broken JSON ({cause}); write one object a line.") from error
        if not isinstance(record, dict):
            raise UserError(f'{where}: not a JSON object; write {{"text": "...", "label": "..."}}.')
        for key in ("text", "label"):
            if key not in record:
                raise UserError(f'{where}: "{key}" is missing; write {{"text": "...", "label": "..."}}.')
        text, label = record["text"], record["label"]
        if not isinstance(text, str):
            raise UserError(f'{where}: "text" is {json.dumps(text):.40}, but must be a string.')
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise UserError(f'{where}: "label" is {json.dumps(label):.40}, but must be a string or a whole number.')
        try:
            f"{text}{label}".encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where}: half a surrogate pair (\\ud800 to \\udfff); write the whole character."
            ) from error
        yield where, str(label), text


def _from_table(rows: list[_Row], *, check_header: bool) -> Iterator[tuple[str, str, str]]:
    if not rows:
        return
    header = [name.strip().lower() for name in rows[0].cells]
    label = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    if label is None:
        if len(header) < 2:
            raise UserError(f"{rows[0].where}: only one column; a row needs a label and a text.")
        if check_header and len(rows) > _ROWS_TO_TELL_A_HEADER:
            counts = Counter(row.cells[0].strip() for row in rows)
            if counts[rows[0].cells[0].strip()] == 1:
                raise UserError(f"{rows[0].where} looks like a header; name its label column label.")
        label, texts = 0, list(range(1, len(header)))
    else:
        texts = _text_columns(rows[0].where, header)
        del rows[0]
    for where, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{where}: {len(cells)} columns, but the first row has {len(header)}; "
                "add what is missing, or quote fields that hold the separator."
            )
        yield where, cells[label], join_columns(cells[column] for column in texts)


def _text_columns(where: str, header: list[str]) -> list[int]:
    for name in TEXT_COLUMNS:
        if name in header:
            return [header.index(name)]
    title = next((name for name in TITLE_COLUMNS if name in header), "")
    columns = [header.index(name) for name in (title, "description") if name in header]
    if not columns:
        raise UserError(
            f"{where}: no column is named text, review, sentence, title, headline or description; name one so."
        )
    return columns


def _rows(path: str | AnyPath, suffix: str) -> Iterator[_Row]:
    """All rows but empty lines, which count as rows, as a spreadsheet counts them."""
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
