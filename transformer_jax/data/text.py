# ruff: noqa: D102  (the fields are documented in config.DataConfig)
"""Sentences from text files, one a line, plain or gzip."""

import gzip
import zlib
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from transformer_jax.errors import UserError
from transformer_jax.paths import AnyPath, as_path, os_errors

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = "\ufeff"


def read_lines(path: str | AnyPath) -> list[str]:
    r"""Read a UTF-8 text file, gzip or not as its first bytes tell.

    Lines end at `\n` only (a `\r` before it is dropped), so that the odd separators that `str.splitlines`
    knows cannot put two files out of step.

    Raises:
        UserError: if the file cannot be read, is truncated, or is not UTF-8.
    """
    return decode_lines(_read_bytes(as_path(path)), str(path))


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


def encodable(text: str) -> str:
    """Replace lone surrogates, which no UTF-8 can hold and sentencepiece refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


@runtime_checkable
class PairFilesConfig(Protocol):
    """What `pair_files` reads of `config.DataConfig`, whose fields these are."""

    @property
    def train_source(self) -> str: ...
    @property
    def train_target(self) -> str: ...
    @property
    def validation_source(self) -> str: ...
    @property
    def validation_target(self) -> str: ...


def pair_files(config: PairFilesConfig, split: str, lines: tuple[str, str]) -> tuple[str, str]:
    """The two files of a split of `name="text"`: sources and what answers them.

    Args:
        config: names the files.
        split: train or validation.
        lines: what stands on a line of either, for the error that asks for a file.

    Raises:
        UserError: if there is no such split, or one of its files is not named.
    """
    files = {
        "train": (config.train_source, config.train_target),
        "validation": (config.validation_source, config.validation_target),
    }
    if split not in files:
        raise UserError(f"config.data.name=text has no split {split!r}, only {', '.join(files)}.")
    for side, line, path in zip(("source", "target"), lines, files[split], strict=True):
        if not path:
            raise UserError(f"config.data.{split}_{side} is empty; name a text file, one {line} a line.")
    return files[split]


def read_pairs(source_path: str | AnyPath, target_path: str | AnyPath) -> list[tuple[str, str]]:
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


def _read_bytes(path: AnyPath) -> bytes:
    try:
        with os_errors(path):
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
