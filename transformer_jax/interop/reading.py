"""Files of other systems, read without running code in them or trusting their sizes and names."""

import codecs
import json
import os
import reprlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from transformer_jax.system import UserError
from transformer_jax.system.files import parse_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_LARGEST_JSON = 64_000_000  # bytes; twice a vocabulary of a million pieces
_LARGEST_HEADER = 100_000_000
_NAMES_SHOWN = 10
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_LARGEST = 10_000_000
"""Bound of any size or count: above that of any model, small enough to loop over."""


def read_bytes(folder: Path, name: str, limit: int | None = None) -> bytes:
    """The content of a file of `folder`.

    Args:
        folder: as named by the user.
        name: name of a file directly in that folder; not trusted, as it may come from another file.
        limit: largest size in bytes; default: any.

    Raises:
        UserError: if the name points outside the folder, or the file is missing, a link, too large or unreadable.
    """
    if name in ("", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise UserError(f"{folder} names the file {name!r}, which is not directly in that folder; copy it again.")
    path = folder / name
    try:
        if path.is_symlink():
            raise UserError(f"{path} is a symbolic link; make a copy without links first: cp -rL {folder} COPY.")
        if not path.exists():
            raise UserError(f"{path} is missing; copy the whole folder again from its origin.")
        if not path.is_file():
            raise UserError(f"{path} is not a file; copy the whole folder again from its origin.")
        if limit is not None and path.stat().st_size > limit:
            raise UserError(f"{path} is larger than {limit:,} bytes; copy it again from its origin.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a readable file.") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of `folder`. Duplicate names, NaN, infinity and lone surrogates are refused.

    Raises:
        UserError: as `read_bytes`, or if the content is not such an object.
    """
    content = read_bytes(folder, name, _LARGEST_JSON)
    try:
        values = parse_json(content.removeprefix(codecs.BOM_UTF8))
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # fails for lone surrogates
    except ValueError as error:
        raise UserError(f"{folder / name} is not valid JSON ({error}); copy it again from its origin.") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder / name} is not a JSON object; copy it again from its origin.")
    return values


def flag(path: Path, values: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean field.

    Args:
        path: the file, for messages.
        values: its content.
        name: name of the field.
        default: value of a missing field.

    Raises:
        UserError: naming the field, if it is not a boolean.
    """
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise unlike(path, values, name, "true or false")
    return value


def whole(
    path: Path,
    values: Mapping[str, Any],
    name: str,
    default: int | None = None,
    *,
    smallest: int,
    below: int = _LARGEST,
) -> int:
    """An integer field, required unless it has a default.

    Raises:
        UserError: naming the field, if it is not an integer from `smallest` to `below` - 1.
    """
    value = values.get(name, default)
    if type(value) is not int or not smallest <= value < below:
        raise unlike(path, values, name, f"a whole number from {smallest} to {below - 1}")
    return value


def number(path: Path, values: Mapping[str, Any], name: str, default: float, smallest: float, largest: float) -> float:
    """A numeric field.

    Raises:
        UserError: naming the field, if it is not a number from `smallest` to `largest`.
    """
    value = values.get(name, default)
    if type(value) not in (int, float) or not smallest <= value <= largest:
        raise unlike(path, values, name, f"a number from {smallest:g} to {largest:g}")
    return float(value)


def unlike(path: Path, values: Mapping[str, Any], name: str, remedy: str) -> UserError:
    """The error for a field that is missing or not as `remedy` says."""
    if name not in values:
        return UserError(f"{path} lacks the field {name}, which must be {remedy}; copy the file again from its origin.")
    shown = "null" if values[name] is None else reprlib.repr(values[name])
    return UserError(f"{path}: {name} is {shown}, but must be {remedy}; change the field, or name another model.")


def read_tensors(path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of a safetensors file, in its order; float16 and bfloat16 become float32.

    Args:
        path: the file.
        prefix: only tensors whose names start with it are read.

    Raises:
        UserError: as `read_bytes`; for a pickle, a truncated or damaged file, and tensors of other types.
    """
    if path.suffix in _PICKLES and os.path.exists(path):  # unlike path.exists, accepts names of any length
        raise UserError(_pickle(path))
    content = read_bytes(path.parent, path.name)
    if content[8:9] != b"{" and content[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UserError(_pickle(path))
    try:
        if struct.unpack("<Q", content[:8])[0] > min(_LARGEST_HEADER, len(content) - 8):
            raise ValueError("its header is longer than the file, or than the largest allowed")
        entries = [entry for entry in safetensors.deserialize(content) if entry[0].startswith(prefix)]
        for name, entry in entries:
            if entry["dtype"] not in _DTYPES:
                raise UserError(
                    f"{path}: {printable(name)} is of type {entry['dtype']}, but only {', '.join(_DTYPES)} are read; "
                    "convert it."
                )
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
            for name, entry in entries
        }
    except (safetensors.SafetensorError, struct.error, KeyError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); copy it again from its origin.") from error


def _pickle(path: Path) -> str:
    return (
        f"{path} is a pickle, and opening one runs the code in it; if you trust it, store its tensors with "
        "safetensors.torch.save_file, or the model with save_pretrained, and name that."
    )


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a model folder: those of model.safetensors, or of all files named in its index.

    Raises:
        UserError: as `read_tensors`; if there are only pickles; if the index and the files disagree.
    """
    has_weights, has_index = (os.path.lexists(folder / name) for name in (WEIGHTS_FILE, INDEX_FILE))
    if has_weights or not has_index:
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
        if pickles and not has_weights:
            raise UserError(_pickle(folder / pickles[0]))
        return read_tensors(folder / WEIGHTS_FILE)
    index = folder / INDEX_FILE
    places = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map from tensors to files; copy it again from its origin.")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{index} names the file {file!r}, but must name safetensors files beside it.")
        shard = read_tensors(folder / file)
        expected = {name for name, place in places.items() if place == file}
        if shard.keys() != expected:
            names = listed(sorted(shard.keys() ^ expected))
            raise UserError(f"{folder / file} and {INDEX_FILE} disagree on {names}; copy both again from their origin.")
        tensors |= shard
    return tensors


def check_tensors(where: Path, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that `tensors` are those of `shapes`.

    Args:
        where: the file, for the message.
        tensors: as read.
        shapes: by the name of every expected tensor.

    Raises:
        UserError: naming the unknown, missing and misshapen tensors (the first ten of each).
    """
    missing = sorted(shapes.keys() - tensors.keys())
    misshapen = [
        f"{printable(name)} {_shape(tensors[name].shape)} instead of {_shape(shape)}"
        for name, shape in sorted(shapes.items())
        if name in tensors and tensors[name].shape != shape
    ]
    faults = {
        "unknown tensors": sorted(tensors.keys() - shapes.keys()),
        "missing tensors": missing,
        "tensors of another shape": misshapen,
    }
    found = [f"{what}: {listed(names)}" for what, names in faults.items() if names]
    if found:
        raise UserError(f"{where} does not fit the model ({'; '.join(found)}); name the weights that belong to it.")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def listed(names: list[str]) -> str:
    """Printable text of the names: the first ten, then the number of the others."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(map(printable, names[:_NAMES_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def printable(name: str) -> str:
    """A name from a file, safe for a terminal: if it is not printable, quoted and shortened."""
    return name if name.isprintable() else reprlib.repr(name)
