# ruff: noqa: D102  (the fields are documented in config.DataConfig)
"""Text files, plain or gzip: lines, pairs of lines, a data set's own files, and parts held out by a hash."""

import gzip
import hashlib
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from transformer_jax.system.errors import UserError
from transformer_jax.system.files import AnyPath, as_path, os_errors

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


def checked_folder(folder: str | AnyPath, title: str) -> AnyPath:
    """The folder of `config.data.manual_dir`.

    Raises:
        UserError: if there is no such folder; `title` is what its message calls the set.
    """
    found = as_path(folder)
    try:
        with os_errors(found):
            is_folder = found.is_dir()
    except OSError as error:
        raise _unreadable(found, error) from error
    if not is_folder:
        raise UserError(f"config.data.manual_dir is {folder}, which is no folder; name the one with {title}'s files.")
    return found


def find_file(folder: AnyPath, name: str) -> AnyPath | None:
    """The file `name` of a folder, gzip (with `.gz` after its name) or plain; None if there is neither.

    Raises:
        UserError: if that cannot be told, as the folder may not be read.
    """
    for path in (folder / f"{name}.gz", folder / name):
        try:
            with os_errors(path):
                is_file = path.is_file()
        except OSError as error:
            raise _unreadable(path, error) from error
        if is_file:
            return path
    return None


def fingerprint(files: Mapping[str, tuple[AnyPath, ...]]) -> str:
    """A short name for what files hold, by split: other splits or other text, another name.

    Raises:
        UserError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    for split, paths in sorted(files.items()):
        for path in paths:
            try:
                with os_errors(path):
                    content = path.read_bytes()
            except OSError as error:
                raise _unreadable(path, error) from error
            digest.update(f"{split} {path.name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


def check_network(url: str, title: str) -> None:
    """Fail at once without a network: TFDS would try again for many minutes.

    Raises:
        UserError: if the server of `url` cannot be reached; `title` is what its message calls the set.
    """
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        return  # the server answers; not every one knows HEAD
    except OSError as error:
        raise UserError(
            f"{url} cannot be reached ({error}); name a folder with {title}'s files in config.data.manual_dir."
        ) from error


def _unreadable(path: AnyPath, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}); make it readable or name another folder.")


Record = TypeVar("Record")

_BITS = 64


def is_held_out(text: str, percent: float) -> bool:
    """Whether a text is among the `percent` % of all texts that are held out; more percent only add to them.

    Args:
        text: any; equal texts have the same fate.
        percent: 0 (none) to 100 (all).
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_BITS // 8).digest()
    return int.from_bytes(digest, "big") < percent / 100 * 2**_BITS


def cut(records: Iterable[Record], key: Callable[[Record], str], percent: float) -> tuple[list[Record], list[Record]]:
    """Records apart as (kept, held out), in their order; those with the same key end on the same side.

    Raises:
        UserError: if `percent` leaves nothing on either side, unless there are no records at all.
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
    """Those of further records whose key none of the held-out ones has."""
    keys = {key(record) for record in held_out}
    return [record for record in records if key(record) not in keys]
