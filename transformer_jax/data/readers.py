"""Records before tokenization: text files, mapped sequences, and the split into training and held-out parts."""

import contextlib
import gzip
import hashlib
import io
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import regex

from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path, os_errors

Record = TypeVar("Record")

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"
_LARGEST_TEXT = 8 << 30  # bytes that a compressed file may have when uncompressed
_PIECE = 1 << 20
CHUNK = 1024
"""Records that are read at a time."""
LONGEST_LINE = 1 << 24
"""Bytes that a line of `iterate_lines` may have."""
# Unicode's own list of characters that show nothing, besides white space, controls and formats other than the Arabic
# signs above numbers and the like; U+2800 is the blank of Braille.
_VISIBLE = regex.compile(
    r"[^\s\p{Z}\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2800]|\p{Prepended_Concatenation_Mark}"
)
_HASH_BITS = 64


def read_lines(path: str | AnyPath) -> list[str]:
    r"""Read a UTF-8 text file, decompressing it if it starts like a gzip file.

    Lines end at `\n` only (a preceding `\r` is dropped), so that the other separators known to `str.splitlines`
    cannot misalign two files.

    Raises:
        UserError: if the file cannot be read, is truncated, or is not UTF-8.
    """
    return decode_lines(_read_bytes(as_path(path)), str(path))


def content_digest(path: str | AnyPath, algorithm: str = "sha256") -> str:
    """The SHA-256, or another hash, of a file's content, uncompressed, in hexadecimal.

    Raises:
        UserError: if the file cannot be read, or is a truncated gzip file.
    """
    return hashlib.new(algorithm, _read_bytes(as_path(path)), usedforsecurity=False).hexdigest()


def decode_lines(content: bytes, name: str) -> list[str]:
    r"""Split UTF-8 text into lines, as `read_lines` does; `name` identifies the text in errors.

    Raises:
        UserError: if the text is not UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise UserError(
            f"{name}, line {line}, byte {column} (0x{content[error.start]:02x}) is not UTF-8; "
            "save the text as UTF-8 or fix the line."
        ) from error
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if not text:
        return []
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def iterate_lines(stream: Any, name: str) -> Iterator[str | UserError]:
    """Read the lines of UTF-8 text one by one, as `read_lines` does; one that cannot be read is its error."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK.encode())
            if not line:
                return
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield UserError(f"{name}, line {number:,} has more than {LONGEST_LINE:,} bytes; split it.")
            continue
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            yield UserError(
                f"{name}, line {number}, byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; "
                "save the text as UTF-8 or fix the line."
            )


class LineReader:
    """The lines of a stream of UTF-8 text from where it stands now, read one by one, and again if it can seek."""

    def __init__(self, stream: Any, path: AnyPath | None = None, *, can_seek: bool) -> None:
        """Wrap a binary stream.

        Args:
            stream: has `readline`, `read`, and `seek` if `can_seek`.
            path: the file that it reads; None: it is standard input.
            can_seek: whether the stream can be read more than once.
        """
        self._stream, self._path = stream, path
        self.can_seek = can_seek
        self._start = stream.tell() if can_seek else 0

    def __iter__(self) -> Iterator[str | UserError]:
        """The lines, as `iterate_lines` yields them.

        Raises:
            UserError: if the stream cannot be read.
        """
        with self._readable():
            if self.can_seek:
                self._stream.seek(self._start)
            yield from iterate_lines(self._stream, "<stdin>" if self._path is None else str(self._path))

    def count(self) -> int:
        """The number of lines, without decoding them; raises as reading does."""
        number, last = 0, b"\n"
        with self._readable():
            if self.can_seek:
                self._stream.seek(self._start)
            piece = self._stream.read(1 << 16).removeprefix(_BYTE_ORDER_MARK.encode())
            while piece:
                number, last = number + piece.count(b"\n"), piece[-1:]
                piece = self._stream.read(1 << 16)
        return number + (last != b"\n")

    def copied(self) -> "LineReader":
        """The same lines, of a temporary copy, which can seek."""
        copy = tempfile.TemporaryFile()  # noqa: SIM115  (the reader closes it)
        with self._readable():
            shutil.copyfileobj(self._stream, copy)
        copy.seek(0)
        return _closing(LineReader(copy, self._path, can_seek=True), copy)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        if self._path is not None:
            with _opened(self._path), _inflated(self._path):
                yield
            return
        try:
            yield
        except OSError as error:
            raise UserError(f"Standard input cannot be read ({error.strerror}); direct a file to it.") from error


def open_lines(path: str | AnyPath) -> LineReader:
    """The lines of a UTF-8 text file, decompressed if it starts like a gzip file.

    Raises:
        UserError: if the file cannot be opened.
    """
    path = as_path(path)
    with _opened(path):
        stream = path.open("rb")
        can_seek = stream.seekable()
        if can_seek:
            magic = stream.read(2)
            stream.seek(0)
        else:
            magic = stream.peek(2)[:2]
    text = gzip.GzipFile(fileobj=stream) if magic == _GZIP_MAGIC else stream
    return _closing(LineReader(text, path, can_seek=can_seek), stream)


def _closing(reader: LineReader, stream: Any) -> LineReader:
    weakref.finalize(reader, stream.close)
    return reader


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it is empty, or white space, controls, joiners and the like alone."""
    return _VISIBLE.search(text) is None


def encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode and sentencepiece rejects."""
    return text.encode("utf-8", "replace").decode("utf-8")


def find_file(folder: AnyPath, name: str) -> AnyPath | None:
    """The file `name` in a folder, gzipped (`name` + `.gz`) or plain; None if neither exists.

    Raises:
        UserError: if the folder cannot be read.
    """
    for path in (folder / f"{name}.gz", folder / name):
        try:
            with os_errors(path):
                is_file = path.is_file()
        except OSError as error:
            raise unreadable(path, error) from error
        if is_file:
            return path
    return None


def unreadable(path: AnyPath, error: OSError) -> UserError:
    """The error for a file or folder of a data set that cannot be read."""
    return UserError(f"{path} cannot be read ({error.strerror}); make it readable or name another folder.")


def text_pairs(config: Any, split: str, lines: tuple[str, str]) -> list[tuple[str, str]]:
    """The pairs of a split of `config.data.name=text`: of one TSV file, or of two files aligned line by line.

    Args:
        config: a `DataConfig`.
        split: train or validation.
        lines: what a line of either file is, for the error about a missing file.

    Raises:
        UserError: if the split does not exist, or its files are not named or cannot be read.
    """
    files = {
        "train": (config.train_file, config.train_source, config.train_target),
        "validation": (config.validation_file, config.validation_source, config.validation_target),
    }
    if split not in files:
        raise UserError(f"config.data.name=text has no split {split!r}, only {', '.join(files)}.")
    table, *sides = files[split]
    if table and any(sides):
        raise UserError(
            f"config.data names both {split}_file and two files, {split}_source and {split}_target; drop one."
        )
    if table:
        return read_pair_table(table, (config.source_column, config.target_column))
    for side, line, path in zip(("source", "target"), lines, sides, strict=True):
        if not path:
            cut = ", or hold out a part with config.data.validation_split=''" if split == "validation" else ""
            raise UserError(
                f"config.data.{split}_{side} is empty; name a text file with one {line} per line there, or a TSV file "
                f"of both in config.data.{split}_file{cut}."
            )
    return read_pairs(*sides)


def read_pair_table(path: str | AnyPath, columns: tuple[int, int] = (1, 2)) -> list[tuple[str, str]]:
    """Read a TSV file without a header, one pair a row; a quote is an ordinary character.

    Args:
        path: plain or gzip.
        columns: those of source and target, from 1; others are ignored.

    Raises:
        UserError: if the file cannot be read, or a row lacks a column.
    """
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = [""] * max(columns) if is_blank(line) else line.split("\t")
        if len(cells) < max(columns):
            raise UserError(
                f"{path}, line {number:,} has {len(cells)} tab-separated columns, but source and target are columns "
                f"{columns[0]} and {columns[1]}; fix the line, or set config.data.source_column and target_column."
            )
        pairs.append((cells[columns[0] - 1], cells[columns[1] - 1]))
    return pairs


def read_pairs(source_path: str | AnyPath, target_path: str | AnyPath) -> list[tuple[str, str]]:
    """Read two files aligned line by line.

    Raises:
        UserError: if a file cannot be read, or the line counts differ.
    """
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise UserError(
            f"{source_path} has {len(sources):,} lines, but {target_path} has {len(targets):,}; "
            "they must be aligned line by line."
        )
    return list(zip(sources, targets, strict=True))


def read_records(records: Sequence[Record], indices: Sequence[int]) -> list[Record]:
    """The records at `indices`, fetched with `__getitems__` where the sequence has it (as TFDS data sources do)."""
    read_many = getattr(records, "__getitems__", None)
    return list(read_many(list(indices))) if read_many else [records[i] for i in indices]


def spread_evenly(records: Sequence[Record], most: int) -> list[Record]:
    """At most `most` records, evenly spaced."""
    return read_records(records, range(0, len(records), max(1, -(-len(records) // most))))


class MappedRecords(Sequence[Record], Generic[Record]):
    """A sequence that applies a function to each record as it is read."""

    def __init__(self, records: Any, function: Callable[[Any], Record]) -> None:
        """Wrap anything with a length and random access."""
        self._records = records
        self._function = function

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(len(self))))
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Record]:
        return [self._function(record) for record in read_records(self._records, indices)]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]


def is_held_out(text: str, percent: float) -> bool:
    """Whether a hash puts `text` among the held-out `percent` % of all texts.

    Equal texts always fall on the same side, and raising `percent` only adds texts to the held-out part.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BITS // 8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2**_HASH_BITS


def cut(records: Iterable[Record], key: Callable[[Record], str], percent: float) -> tuple[list[Record], list[Record]]:
    """Split records into (kept, held out), preserving order; records with equal keys stay together.

    Raises:
        UserError: if `percent` leaves either part of a non-empty set empty.
    """
    if not 0 < percent < 100:
        raise UserError(
            f"config.data.validation_percent is {percent:g}, but must be above 0 and below 100 where "
            "config.data.validation_split is empty."
        )
    parts: tuple[list[Record], list[Record]] = [], []
    for record in records:
        parts[is_held_out(key(record), percent)].append(record)
    for part, share, remedy in ((parts[1], "none", "raise"), (parts[0], "all", "lower")):
        if not part and (count := len(parts[0]) + len(parts[1])):
            raise UserError(
                f"config.data.validation_percent is {percent:g}, which holds out {share} of {count:,} records; "
                f"{remedy} it."
            )
    return parts


def apart_from(held_out: Iterable[Record], records: Iterable[Record], key: Callable[[Record], str]) -> list[Record]:
    """The records that share no key with a held-out record."""
    keys = {key(record) for record in held_out}
    return [record for record in records if key(record) not in keys]


def _read_bytes(path: AnyPath) -> bytes:
    with _opened(path), path.open("rb") as stream:
        content: bytes = stream.read(_LARGEST_TEXT + 1)
    if not content.startswith(_GZIP_MAGIC):
        return content
    text = bytearray()
    with _inflated(path), gzip.open(io.BytesIO(content)) as stream:
        while len(text) <= _LARGEST_TEXT and (piece := stream.read(_PIECE)):
            text += piece
    if len(text) > _LARGEST_TEXT:
        raise UserError(f"{path} has more than {_LARGEST_TEXT:,} bytes of text; cut it into parts.")
    return bytes(text)


@contextlib.contextmanager
def _opened(path: AnyPath) -> Iterator[None]:
    """Turn errors of opening and reading a file into sentences."""
    try:
        with os_errors(path):
            yield
    except FileNotFoundError as error:
        where = "the file" if path.parent.is_dir() else "its folder"
        raise UserError(f"{path} cannot be read, {where} does not exist; check the path.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a readable file.") from error


@contextlib.contextmanager
def _inflated(path: AnyPath) -> Iterator[None]:
    """Turn errors of decompression into sentences."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged or truncated gzip file ({error}); copy or download it again.") from error
