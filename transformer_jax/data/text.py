"""Sentences from text files, one a line, plain or gzip."""

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from transformer_jax.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: str | Path) -> list[str]:
    r"""Read a UTF-8 text file, gzip or not as its first bytes tell.

    Lines end at `\n` only (a `\r` before it is dropped), so that the odd separators that `str.splitlines`
    knows cannot put two files out of step.

    Raises:
        UserError: if the file cannot be read, is truncated, or is not UTF-8.
    """
    return decode_lines(_read_bytes(Path(path)), str(path))


def decode_lines(content: bytes, name: str) -> list[str]:
    r"""UTF-8 text as lines, as `read_lines` cuts them; `name` is what an error calls the text.

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
            "save the text in UTF-8 or mend the line."
        ) from error
    text = text.removeprefix(_BYTE_ORDER_MARK)
    if not text:
        return []
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def read_pairs(source_path: str | Path, target_path: str | Path) -> list[tuple[str, str]]:
    """Read two files aligned line by line.

    Raises:
        UserError: if a file cannot be read, or their line counts differ.
    """
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise UserError(
            f"{source_path} has {len(sources):,} lines, but {target_path} has {len(targets):,}; "
            "they must be aligned line by line."
        )
    return list(zip(sources, targets, strict=True))


def drop_blank_pairs(pairs: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
    """Leave out pairs that are blank on either side; also returns how many those were."""
    pairs = list(pairs)
    kept = [(source, target) for source, target in pairs if source.strip() and target.strip()]
    return kept, len(pairs) - len(kept)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        where = "the file" if path.parent.is_dir() else "its folder"
        raise UserError(f"{path} cannot be read, {where} does not exist; check the path.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a readable file.") from error
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is a damaged or truncated gzip file ({error}); copy or download it again.") from error
