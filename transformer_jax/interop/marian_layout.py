"""Tensors of MarianMT and Pegasus as parameters of a `Seq2Seq`, and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import Float, Int

from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params

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
