"""Runs what `transformer-jax export --to stablehlo` wrote, with jax, flatbuffers and numpy alone.

Each exported folder has a copy of this file. The folder must come from somebody you trust: the programs in it are
compiled and run. Each new combination of batch size and lengths is compiled when it first comes.
"""

import hashlib
import json
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

_PROGRAMS = {"seq2seq": ("encoder", "step"), "classifier": ("classifier",)}


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


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
"""What must be in a signature, and what tells whether it is."""


class ExportError(ValueError):
    """An exported folder cannot be used; the message says why and what to do."""


class Seq2SeqProgram:
    """An encoder-decoder model: `encode` once, then `step` once a token. B sentences, K hypotheses of each."""

    def __init__(self, signature: dict[str, Any], programs: dict[str, export.Exported]) -> None:
        """Put the parts together; `load` does it."""
        self.signature = signature
        self._encode = jax.jit(programs["encoder"].call)
        self._step = jax.jit(programs["step"].call)

    def encode(self, source: Any) -> Any:
        """What decoding needs of the sources: token ids [B, S], each with its end, 0 where padded.

        Raises:
            ExportError: if S is more than the model takes.
        """
        _check_length(np.shape(source)[1], self.signature["max_source_length"], "A source")
        return self._encode(jnp.asarray(source, jnp.int32))

    def empty_cache(self, batch_size: int, beam_size: int, max_length: int) -> Any:
        """What decoding remembers of the tokens before: none yet, with room for `max_length`.

        Raises:
            ExportError: if that is more than the model has positions for.
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
        """Logits [B, K, V] after one more token [B, K] of each hypothesis, and the cache that holds it too.

        A search whose hypotheses move moves their rows of `cache["ancestors"]` [B, K, max_length] with them.
        """
        return self._step(jnp.asarray(tokens, jnp.int32), cache, memory)

    def greedy(self, sources: Sequence[Sequence[int]], max_length: int) -> list[list[int]]:
        """The likeliest token at each step, until the end or `max_length` tokens.

        Args:
            sources: token ids of each sentence, the end included.
            max_length: tokens of an output, the end not included.

        Returns:
            Token ids of each output, without the end.

        Raises:
            ExportError: if a source, or `max_length`, is longer than the model takes.
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
    """A classifier of texts."""

    def __init__(self, signature: dict[str, Any], programs: dict[str, export.Exported]) -> None:
        """Put the parts together; `load` does it."""
        self.signature = signature
        self._classify = jax.jit(programs["classifier"].call)

    def probabilities(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """The probability of each class [B, C] for the token ids of each text, the start included.

        Raises:
            ExportError: if a text is longer than the model takes.
        """
        if not texts:
            return np.zeros((0, len(self.signature["classes"])), np.float32)
        _check_length(max(map(len, texts)), self.signature["max_length"], "A text")
        return np.asarray(self._classify(_padded(texts)))


def load(folder: str | Path) -> Seq2SeqProgram | ClassifierProgram:
    """The model in an exported folder.

    Raises:
        ExportError: if a file is missing, damaged or of an unknown version.
    """
    signature = _read_signature(Path(folder) / SIGNATURE_FILE)
    programs = {name: _read_program(Path(folder), entry) for name, entry in signature["programs"].items()}
    if signature["kind"] == "seq2seq":
        return Seq2SeqProgram(signature, programs)
    return ClassifierProgram(signature, programs)


def _read_signature(path: Path) -> dict[str, Any]:
    try:
        signature = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{path} is no JSON; copy the folder again from its origin.") from error
    if not isinstance(signature, dict) or signature.get("format") != FORMAT:
        raise ExportError(f"{path} does not describe a model that transformer-jax exported; name another folder.")
    if signature.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{path} has format_version {signature.get('format_version')!r}, but this reader knows {FORMAT_VERSION}; "
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
        return export.deserialize(bytearray(content))
    except ImportError as error:
        raise ExportError(
            "jax reads exported programs with flatbuffers; install it: pip install flatbuffers."
        ) from error
    except Exception as error:  # of several classes, as the bytes may be anything
        raise ExportError(f"jax {jax.__version__} cannot read {path} ({error}); install a newer one.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read ({error.strerror}); copy the folder again from its origin."
        ) from error


def _check_length(length: int, limit: int | None, what: str) -> None:
    if limit is not None and length > limit:
        raise ExportError(f"{what} has {length:,} tokens, but the model takes {limit:,}; make it shorter.")


def _padded(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    rows = np.full((len(sequences), max(map(len, sequences))), PADDING, np.int32)
    for row, tokens in zip(rows, sequences, strict=True):
        row[: len(tokens)] = tokens
    return rows
