"""Runs the folders of `transformer-jax export --to stablehlo`; needs only jax, flatbuffers and numpy.

Each exported folder contains a copy of this file. The programs in it are compiled and run; `load` refuses those that
would call anything but XLA's own operations. Each new combination of batch size and lengths is compiled on first use.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

FORMAT = "transformer-jax-stablehlo"
FORMAT_VERSION = 3
SIGNATURE_FILE = "signature.json"
PADDING = 0

_LARGEST_SIGNATURE = 64_000_000  # bytes
_LARGEST_SIZE = 1_000_000
_CALL = re.compile(r"custom_call\b(?: @([\w.]+)\()?")
_CALLS = ("shape_assertion", "Sharding")
"""Custom calls that check shapes or place arrays; any other may be a function that a library of the process offers."""

_PROGRAMS = {"seq2seq": ("encoder", "step"), "classifier": ("classifier",)}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _has_sizes(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(_is_size(value.get(name)) for name in names)


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(item) is kind for item in value)


_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "seq2seq": {
        "markers": _has_sizes("start", "end"),
        "never": _is_list_of(int),
        "sizes": _has_sizes("num_decoder_layers", "num_heads", "head_width"),
        "dtype": lambda value: value in ("float32", "bfloat16", "float16"),
        "max_source_length": _is_size,
        "max_positions": lambda value: value is None or _is_size(value),
    },
    "classifier": {"classes": _is_list_of(str), "max_length": _is_size},
}
"""Required fields of a signature, by kind, and a check of each."""


class ExportError(ValueError):
    """An exported folder cannot be used; the message gives the reason and the remedy."""


class Seq2SeqProgram:
    """An encoder-decoder model: call `encode` once, then `step` for each token. B sentences, K hypotheses of each."""

    def __init__(self, signature: dict[str, Any], programs: dict[str, export.Exported]) -> None:
        """Use `load` instead."""
        self.signature = signature
        self._encode = jax.jit(programs["encoder"].call)
        self._step = jax.jit(programs["step"].call)

    def encode(self, source: Any) -> Any:
        """The memory that `step` reads, of source token ids [B, S], each with its end, padded with 0.

        Raises:
            ExportError: if S is above the model's limit.
        """
        _check_length(np.shape(source)[1], self.signature["max_source_length"], "A source")
        return self._encode(jnp.asarray(source, jnp.int32))

    def empty_cache(self, batch_size: int, beam_size: int, max_length: int) -> Any:
        """A decoding cache without tokens, with room for `max_length`.

        Raises:
            ExportError: if the model has fewer positions.
        """
        _check_length(max_length, self.signature["max_positions"], "An output")
        sizes = self.signature["sizes"]
        shape = (batch_size, sizes["num_heads"], sizes["head_width"], max_length * beam_size)
        keys = jnp.zeros(shape, self.signature["dtype"])
        return {
            "keys_values": ((keys, keys.swapaxes(2, 3)),) * sizes["num_decoder_layers"],
            "length": jnp.zeros((), jnp.int32),
            "ancestors": jnp.zeros((batch_size, beam_size, max_length), jnp.int32),
        }

    def step(self, tokens: Any, cache: Any, memory: Any) -> tuple[jax.Array, Any]:
        """Logits [B, K, V] after one more token [B, K] of each hypothesis, and the cache with that token.

        A search that reorders hypotheses reorders their rows of `cache["ancestors"]` [B, K, max_length] too.
        """
        return self._step(jnp.asarray(tokens, jnp.int32), cache, memory)

    def greedy(self, sources: Sequence[Sequence[int]], max_length: int) -> list[list[int]]:
        """Greedy search: the likeliest token at each step, until the end or `max_length` tokens.

        Args:
            sources: token ids of each sentence, with its end.
            max_length: largest number of tokens of an output, without its end.

        Returns:
            Token ids of each output, without its end.

        Raises:
            ExportError: if a source, or `max_length`, is above the model's limit.
        """
        if not sources:
            return []
        start, end = (self.signature["markers"][name] for name in ("start", "end"))
        memory = self.encode(_padded(sources))
        cache = self.empty_cache(len(sources), 1, max_length)
        newest = np.full((len(sources), 1), start, np.int32)
        outputs: list[list[int]] = [[] for _ in sources]
        has_ended = np.zeros(len(sources), bool)
        for _ in range(max_length):
            logits, cache = self.step(newest, cache, memory)
            scores = np.array(logits, np.float32)
            scores[..., self.signature["never"]] = -np.inf
            newest = scores.argmax(-1).astype(np.int32)
            has_ended |= newest[:, 0] == end
            if has_ended.all():
                break
            for row in np.flatnonzero(~has_ended):
                outputs[row].append(int(newest[row, 0]))
        return outputs


class ClassifierProgram:
    """A text classifier."""

    def __init__(self, signature: dict[str, Any], programs: dict[str, export.Exported]) -> None:
        """Use `load` instead."""
        self.signature = signature
        self._classify = jax.jit(programs["classifier"].call)

    def probabilities(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The probability of each class [B, C] for the token ids of each text, with its start.

        Raises:
            ExportError: if a text is above the model's limit.
        """
        if not texts:
            return np.zeros((0, len(self.signature["classes"])), np.float32)
        _check_length(max(map(len, texts)), self.signature["max_length"], "A text")
        return np.asarray(self._classify(_padded(texts)))


def load(folder: str | Path) -> Seq2SeqProgram | ClassifierProgram:
    """Load an exported folder.

    Raises:
        ExportError: if a file is missing, damaged or of an unknown version.
    """
    signature = _read_signature(Path(folder) / SIGNATURE_FILE)
    programs = {name: _read_program(Path(folder), entry) for name, entry in signature["programs"].items()}
    if signature["kind"] == "seq2seq":
        if not _has_cache_of(programs["step"], signature["sizes"]):
            raise ExportError(f"{folder} has a program without the sizes of {SIGNATURE_FILE}; copy it again.")
        return Seq2SeqProgram(signature, programs)
    outputs, classes = programs["classifier"].out_avals, len(signature["classes"])
    if len(outputs) != 1 or outputs[0].shape[-1:] != (classes,):
        raise ExportError(f"{folder} has a program without the {classes:,} classes of {SIGNATURE_FILE}; copy it again.")
    return ClassifierProgram(signature, programs)


def _has_cache_of(step: export.Exported, sizes: dict[str, int]) -> bool:
    """Whether the cache that a program takes has these sizes, so that none larger is made."""
    try:
        (_, cache, _), _ = jax.tree.unflatten(step.in_tree, step.in_avals)
        heads = {keys.shape[1:3] for keys, _ in cache["keys_values"]}
        found = len(cache["keys_values"])
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    return found == sizes["num_decoder_layers"] and heads <= {(sizes["num_heads"], sizes["head_width"])}


def _read_signature(path: Path) -> dict[str, Any]:
    content = _read(path, _LARGEST_SIGNATURE)
    try:
        signature = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not valid JSON; copy the folder again from its origin.") from error
    if not isinstance(signature, dict) or signature.get("format") != FORMAT:
        raise ExportError(f"{path} does not describe an export of transformer-jax; name another folder.")
    version = signature.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ExportError(
            f"{path} has format_version {version!r}, but this reader reads {FORMAT_VERSION}; "
            "use the reader of the release that wrote it."
        )
    kind = signature.get("kind", "")
    programs = signature.get("programs")
    if (
        not isinstance(kind, str)
        or kind not in _PROGRAMS
        or not all(check(signature.get(name)) for name, check in _FIELDS[kind].items())
        or not isinstance(programs, dict)
        or sorted(programs) != sorted(_PROGRAMS[kind])
        or not all(isinstance(entry, dict) and isinstance(entry.get("file"), str) for entry in programs.values())
    ):
        raise ExportError(f"{path} is damaged; copy the folder again from its origin.")
    return signature


def _read_program(folder: Path, entry: dict[str, Any]) -> export.Exported:
    path = folder / Path(entry["file"]).name
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise ExportError(f"{path} is truncated or damaged; copy it again from its origin.")
    try:
        program = export.deserialize(bytearray(content))
        calls = set(_CALL.findall(program.mlir_module()))
    except ImportError as error:
        raise ExportError("jax reads programs with flatbuffers; install it: pip install flatbuffers.") from error
    except Exception as error:  # of any class, as the bytes may be anything
        raise ExportError(f"jax {jax.__version__} cannot read {path} ({error}); install a newer one.") from error
    if not calls <= set(_CALLS):
        named = ", ".join(sorted(calls - set(_CALLS))) or "something"
        raise ExportError(f"{path} calls {named} outside of its program, which no export does; do not use it.")
    return program


def _read(path: Path, limit: int | None = None) -> bytes:
    try:
        if path.resolve().parent != path.parent.resolve():
            raise ExportError(f"{path} is a link out of its folder; copy the folder without links, with cp -rL.")
        if path.exists() and not path.is_file():
            raise ExportError(f"{path} is not a file; copy the folder again from its origin.")
        if limit is not None and path.stat().st_size > limit:
            raise ExportError(f"{path} is larger than {limit:,} bytes; copy the folder again from its origin.")
        return path.read_bytes()
    except ExportError:
        raise
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read ({error.strerror}); copy the folder again from its origin."
        ) from error
    except ValueError as error:  # a NUL or a lone surrogate
        raise ExportError(f"No file has the name {str(path)!a}; copy the folder again from its origin.") from error


def _check_length(length: int, limit: int | None, what: str) -> None:
    if limit is not None and length > limit:
        raise ExportError(f"{what} has {length:,} tokens, but the limit of the model is {limit:,}; shorten it.")


def _padded(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    rows = np.full((len(sequences), max(map(len, sequences))), PADDING, np.int32)
    for row, tokens in zip(rows, sequences, strict=True):
        row[: len(tokens)] = tokens
    return rows
