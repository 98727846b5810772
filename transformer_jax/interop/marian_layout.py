"""Tensors and tokenizer files of MarianMT and Pegasus as ours, and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int

from transformer_jax.data import SpecialTokens
from transformer_jax.data.sentencepiece_tokenizers import MarianTokenizer, SentencePieceTokenizer, processor_of
from transformer_jax.data.tokenizers import Tokenizer, TokenizerPair
from transformer_jax.interop.reading import flag, printable, read_bytes, read_json
from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params
from transformer_jax.system import UserError

SHARED, ENCODER, DECODER, OUTPUT, BIAS = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
    "final_logits_bias",
)
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")

_TABLES = {
    "all": {"target_embedding": SHARED},
    "output": {"source_embedding": ENCODER, "target_embedding": DECODER},
    "inputs": {"target_embedding": DECODER, "output_embedding": OUTPUT},
    "none": {"source_embedding": ENCODER, "target_embedding": DECODER, "output_embedding": OUTPUT},
}
"""Tensor of each embedding table, by `ModelConfig.tie_embeddings`."""
_LAYERS = {
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "self_attention_residual.norm": "self_attn_layer_norm",
    "cross_attention_residual.norm": "encoder_attn_layer_norm",
    "feed_forward_residual.norm": "final_layer_norm",
    "feed_forward.wide": "fc1",
    "feed_forward.narrow": "fc2",
}
_PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
_READS_WIDTH = ("query", "key", "value", "wide")
"""Linear layers with an input of width D."""
_WRITES_WIDTH = ("out", "narrow", "norm")
"""Layers with an output of width D."""
_ROWS_OF_WIDTH = ("table", "learned")

ParamPath = tuple[Any, ...]


class Numbering(NamedTuple):
    """How a vocabulary is numbered elsewhere: in our order, except for padding, which is 0 here."""

    padding: int
    """Their id of padding."""
    size: int

    def here(self, token_id: int) -> int:
        """Our id of theirs."""
        return 0 if token_id == self.padding else token_id + (token_id < self.padding)

    def there(self, token_id: int) -> int:
        """Their id of ours."""
        return self.padding if token_id == 0 else token_id - (token_id <= self.padding)

    def order(self) -> Int[np.ndarray, " V"]:
        """Their ids, in the order of ours."""
        return np.insert(np.delete(np.arange(self.size), self.padding), 0, self.padding)


def marian_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of such a model."""
    _, params = abstract_params(Seq2Seq, config)
    flat = traverse_util.flatten_dict(params)
    return {_name(path, config): _turned_shape(path, leaf.shape) for path, leaf in flat.items()}


def from_marian(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, source: Numbering, target: Numbering
) -> dict[str, Any]:
    """Parameters of a `Seq2Seq` from tensors with the names and shapes of `marian_shapes`."""
    _, params = abstract_params(Seq2Seq, config)
    flat = {path: _turned(path, tensors[_name(path, config)]) for path in traverse_util.flatten_dict(params)}
    for path in flat:
        if _counts_tokens(path):
            flat[path] = flat[path][_numbering(path, source, target).order()]
    return permute_width(traverse_util.unflatten_dict(flat), sines_first(config.d_model))


def to_marian(
    params: Mapping[str, Any], config: ModelConfig, source: Numbering, target: Numbering
) -> dict[str, np.ndarray]:
    """Inverse of `from_marian`; the tensors are float32 and contiguous."""
    permuted = permute_width(params, np.argsort(sines_first(config.d_model)))
    tensors = {}
    for path, value in traverse_util.flatten_dict(permuted).items():
        if _counts_tokens(path):
            value = value[np.argsort(_numbering(path, source, target).order())]
        tensors[_name(path, config)] = np.ascontiguousarray(_turned(path, value), dtype=np.float32)
    return tensors


def _name(path: ParamPath, config: ModelConfig) -> str:
    first, last = path[0], path[-1]
    if first == "output_bias":
        return BIAS
    if last == "table":
        return _TABLES[config.tie_embeddings][first]
    ending = "bias" if last == "bias" else "weight"
    if path[1] == "norm":
        return f"model.{first}.layer_norm.{ending}"
    _, _, number, *middle, _ = path
    parts = _LAYERS.get(".".join(middle)) or f"{_LAYERS[middle[0]]}.{_PROJECTIONS[middle[1]]}"
    return f"model.{first}.layers.{number}.{parts}.{ending}"


def _turned(path: ParamPath, array: np.ndarray) -> np.ndarray:
    """Transposed as PyTorch stores weights; their bias of the logits has a batch axis."""
    if path[-1] == "kernel":
        return array.T
    if path[0] == "output_bias":
        return array[0] if array.ndim == 2 else array[None]
    return array


def _turned_shape(path: ParamPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `_turned` gives; without an array, as the sizes are not trusted yet."""
    if path[-1] == "kernel":
        return shape[::-1]
    return (1, *shape) if path[0] == "output_bias" else shape


def _counts_tokens(path: ParamPath) -> bool:
    return path[-1] == "table" or path[0] == "output_bias"


def _numbering(path: ParamPath, source: Numbering, target: Numbering) -> Numbering:
    return source if path[0] == "source_embedding" else target


def sinusoids(rows: int, d_model: int) -> Float[np.ndarray, "rows D"]:
    """The table of positions, all sines first; in double precision, as transformers computes it."""
    angles = np.arange(rows)[:, None] / 10000.0 ** (np.arange(0, d_model, 2) / d_model)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sines_first(d_model: int) -> Int[np.ndarray, " D"]:
    """The index, in a width with all sines first, of each column of ours, which alternates sines and cosines."""
    return np.arange(d_model).reshape(2, -1).T.reshape(-1)


def permute_width(params: Mapping[str, Any], order: Int[np.ndarray, " D"]) -> dict[str, Any]:
    """Parameters that compute the same function with the columns of the model width reordered.

    Args:
        params: parameters of a `Seq2Seq` (numpy or JAX), as `nn.split` gives them.
        order: the old index of each new column; `numpy.argsort(order)` undoes it.
    """
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: _permuted(path, value, order) for path, value in flat.items()})


def _permuted(path: ParamPath, value: Any, order: Int[np.ndarray, " D"]) -> np.ndarray:
    array = np.asarray(value)
    layer, name = path[-2:] if len(path) > 1 else ("", path[-1])
    if name in _ROWS_OF_WIDTH or layer in _WRITES_WIDTH:
        return array.take(order, axis=-1)
    if layer in _READS_WIDTH and name == "kernel":
        return array.take(order, axis=-2)
    return array


# Tokenizer files.

_SOURCE, _TARGET = "source.spm", "target.spm"
_VOCABULARY, _TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_LARGEST_MODEL = 64_000_000  # bytes
_MARKERS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class Side(NamedTuple):
    """One side's tokenizer, as MarianMT stores it, with our ids."""

    model: bytes
    pieces: list[str | None]
    special_tokens: SpecialTokens
    numbering: Numbering


def read_tokenizers(
    folder: Path, tokenizer_config: Mapping[str, Any], source_size: int, target_size: int, start: int
) -> tuple[MarianTokenizer, MarianTokenizer]:
    """The source and target tokenizers of a MarianMT folder.

    Args:
        folder: with source.spm, target.spm, vocab.json and, if the vocabularies are separate, target_vocab.json.
        tokenizer_config: the content of tokenizer_config.json; may be empty.
        source_size: number of source ids.
        target_size: number of target ids.
        start: their id of the decoder's first token.

    Raises:
        UserError: naming the file, if one is missing or damaged, or has duplicate or out-of-range ids.
    """
    names = {name: _token(folder, tokenizer_config, name) for name in _MARKERS}
    separate = flag(folder / TOKENIZER_CONFIG, tokenizer_config, "separate_vocabs", False)
    target_file = _TARGET_VOCABULARY if separate else _VOCABULARY
    source = _read_side(folder, _SOURCE, _VOCABULARY, names, source_size, None)
    return source, _read_side(folder, _TARGET, target_file, names, target_size, start)


def numbering_of(tokenizer: MarianTokenizer) -> Numbering:
    """The numbering of the vocabulary in the folder it was imported from."""
    return Numbering(tokenizer.padding_place, tokenizer.vocab_size)


def sides_of(pair: TokenizerPair) -> tuple[Side, Side]:
    """Source and target as MarianMT stores them; padding keeps the place it was imported with, or comes last.

    Raises:
        UserError: if a tokenizer is not a sentencepiece model.
    """
    # transformers has one id of padding for both sides, so with two vocabularies it is the last of the smaller one.
    last = min(pair.source.vocab_size, pair.target.vocab_size) - 1
    return _side(pair.source, last), _side(pair.target, last)


def write_tokenizers(folder: Path, source: Side, target: Side, *, max_length: int, languages: tuple[str, str]) -> None:
    """Write the tokenizer files of a MarianMT folder.

    Args:
        folder: an existing folder.
        source: tokenizer of the inputs.
        target: tokenizer of the outputs.
        max_length: tokens of the longest input.
        languages: of source and target; may be empty.
    """
    separate = (source.pieces, source.numbering) != (target.pieces, target.numbering)
    (folder / _SOURCE).write_bytes(source.model)
    (folder / _TARGET).write_bytes(target.model)
    write_json(folder / _VOCABULARY, _numbered(source))
    if separate:
        write_json(folder / _TARGET_VOCABULARY, _numbered(target))
    named = {
        "eos_token": source.special_tokens.eos,
        "unk_token": source.special_tokens.unk,
        "pad_token": 0,
    }
    tokenizer_config = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": languages[0] or None,
        "target_lang": languages[1] or None,
        "separate_vocabs": separate,
        "model_max_length": max_length,
        **{name: source.pieces[token_id] for name, token_id in named.items()},
    }
    write_json(
        folder / TOKENIZER_CONFIG, {name: value for name, value in tokenizer_config.items() if value is not None}
    )


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, one field per line."""
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_side(
    folder: Path, model_file: str, vocabulary_file: str, names: Mapping[str, str], size: int, start: int | None
) -> MarianTokenizer:
    model = read_bytes(folder, model_file, _LARGEST_MODEL)
    processor_of(model, str(folder / model_file))
    vocabulary = read_json(folder, vocabulary_file)
    path = folder / vocabulary_file
    for name, token in names.items():
        if token not in vocabulary:
            raise UserError(f"{path} lacks {printable(token)}, the {name}; copy it again from its origin.")
    if len(set(names.values())) < len(names):
        given = ", ".join(printable(f"{name} {token}") for name, token in names.items())
        raise UserError(
            f"{folder / TOKENIZER_CONFIG}: special tokens must be three pieces, but are {given}; correct them."
        )
    pieces: list[str | None] = [None] * size
    for piece, token_id in vocabulary.items():
        if type(token_id) is not int or not 0 <= token_id < size:
            raise UserError(
                f"{path}: {piece!r} has the id {token_id!r}, but the model has the ids 0 to {size - 1}; "
                "copy the vocabulary that belongs to it."
            )
        if pieces[token_id] is not None:
            raise UserError(f"{path}: {pieces[token_id]!r} and {piece!r} have the same id, {token_id}; copy it again.")
        pieces[token_id] = piece
    end, unknown, padding = (vocabulary[names[name]] for name in _MARKERS)
    numbering = Numbering(padding, size)
    special_tokens = SpecialTokens(*map(numbering.here, (padding if start is None else start, end, unknown)))
    return MarianTokenizer(model, [pieces[token_id] for token_id in numbering.order()], special_tokens, padding)


def _token(folder: Path, tokenizer_config: Mapping[str, Any], name: str) -> str:
    token = tokenizer_config.get(name, _MARKERS[name])
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        raise UserError(f"{folder / TOKENIZER_CONFIG}: {name} is {token!r}, but must be a piece of {_VOCABULARY}.")
    return token


def _side(tokenizer: Tokenizer, last: int) -> Side:
    if isinstance(tokenizer, MarianTokenizer):
        return Side(tokenizer.model, tokenizer.pieces, tokenizer.special_tokens, numbering_of(tokenizer))
    if isinstance(tokenizer, SentencePieceTokenizer):
        size = tokenizer.vocab_size
        pieces: list[str | None] = [tokenizer.piece(token_id) for token_id in range(size)]
        (model,) = tokenizer.files().values()
        return Side(model, pieces, tokenizer.special_tokens, Numbering(last, size))
    raise UserError(
        "The model's tokenizer is a list of words or characters, but MarianMT needs sentencepiece; export to another "
        "system, or train with config.tokenizer.kind=bpe or unigram."
    )


def _numbered(side: Side) -> dict[str, int]:
    numbered = {
        piece: side.numbering.there(token_id) for token_id, piece in enumerate(side.pieces) if piece is not None
    }
    return dict(sorted(numbered.items(), key=lambda item: item[1]))
