"""State dicts of PyTorch's `nn.Transformer`, as safetensors, to model folders."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from transformer_jax.data.readers import encodable
from transformer_jax.interop.reading import check_tensors, read_tensors
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.layers import ACTIVATIONS
from transformer_jax.system import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import save
from transformer_jax.tasks.registry import IMPORTED_STACKS

Tensors = dict[str, np.ndarray]

_ATTENTIONS = {
    "encoder": {"self_attention": "self_attn"},
    "decoder": {"self_attention": "self_attn", "cross_attention": "multihead_attn"},
}
"""Our names and PyTorch's, in the order of PyTorch's numbered norms; the feed-forward network comes last."""


def import_torch(
    path: str | Path,
    out: str | Path,
    *,
    num_heads: int = 8,
    norm_first: bool = False,
    activation: str = "relu",
    prefix: str = "",
) -> None:
    """Make a model folder of a state dict of `nn.Transformer`; `load` returns it as `TransformerStacks`.

    Sizes come from the shapes of the tensors, the rest from the arguments, with PyTorch's defaults. `layer_norm_eps`
    must be its default, 1e-5. A model without biases (`bias=False`) gets biases of zero. Custom stacks that end without
    a norm have none here.

    Args:
        path: a safetensors file, as written by `safetensors.torch.save_file(model.state_dict(), path)`.
        out: the folder to write.
        num_heads: `nhead` of the model.
        norm_first: as in PyTorch.
        activation: relu, gelu or swish (PyTorch's SiLU).
        prefix: prefix of the tensor names in a larger model's state dict, such as `transformer.`; other tensors
            are ignored.

    Raises:
        UserError: if the file cannot be read, or is not such a state dict, naming the tensors that do not fit.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is not a file; name a safetensors file.")
    tensors = _own(path, read_tensors(path, prefix), prefix)
    config = _config(path, tensors, num_heads, norm_first, activation, prefix)
    check_tensors(path, tensors, dict(_shapes(config, tensors)))
    params = {side: _stack(tensors, side, config) for side in _ATTENTIONS}
    with new_folder(out) as folder:
        save(
            folder,
            task=IMPORTED_STACKS,
            model_config=config,
            params=params,
            tokenizer_files={},
            settings={},
            scores={},
            origin={"imported from": f"{encodable(path.name)}, weights of PyTorch's nn.Transformer"},
        )


def _own(path: Path, tensors: Tensors, prefix: str) -> Tensors:
    """The tensors by their names without `prefix`."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for side in _ATTENTIONS:
        first = f"{side}.layers.0.linear1.weight"
        if first in own and own[first].ndim == 2:
            continue
        elsewhere = sorted(name.removesuffix(first) for name in tensors if name.endswith(f".{first}"))
        remedy = f"give the prefix {elsewhere[0]!r}" if elsewhere else "name the weights of one, or its prefix"
        raise UserError(f"{path} has no matrix {prefix}{first}, which every nn.Transformer has; {remedy}.")
    return own


def _config(
    path: Path, tensors: Tensors, num_heads: int, norm_first: bool, activation: str, prefix: str
) -> ModelConfig:
    d_ff, d_model = tensors["encoder.layers.0.linear1.weight"].shape
    if d_ff < 1 or d_model < 1:
        raise UserError(f"{path}: {prefix}encoder.layers.0.linear1.weight is empty; name the weights of a model.")
    if num_heads < 1 or d_model % num_heads:
        raise UserError(
            f"num_heads is {num_heads}, but must divide the width of {path}, {d_model}; give the model's nhead."
        )
    if activation not in ACTIVATIONS:
        raise UserError(f"activation is {activation!r}, but must be one of {', '.join(ACTIVATIONS)}.")
    if d_model % 2:
        raise UserError(f"{path} has {prefix}encoder of width {d_model}, but only even widths are supported.")

    def count(side: str) -> int:
        return len({match[1] for name in tensors if (match := re.match(rf"{side}\.layers\.(\d+)\.", name))})

    return ModelConfig(
        d_model=d_model,
        num_heads=num_heads,
        d_ff=d_ff,
        num_encoder_layers=count("encoder"),
        num_decoder_layers=count("decoder"),
        norm_first=norm_first,
        final_norm=not norm_first and any(f"{side}.norm.weight" in tensors for side in _ATTENTIONS),
        activation=activation,
    )


def _shapes(config: ModelConfig, tensors: Tensors) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of such a model, with the biases and the packing of `tensors`."""
    has_bias = any(name.endswith("bias") for name in tensors)
    d_model, d_ff = config.d_model, config.d_ff

    def affine(name: str, *weight: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", weight
        if has_bias:
            yield f"{name}.bias", weight[:1]

    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for side, attentions in _ATTENTIONS.items():
        for layer in (f"{side}.layers.{number}" for number in range(layers[side])):
            for attention in (f"{layer}.{name}" for name in attentions.values()):
                if f"{attention}.q_proj_weight" in tensors:
                    yield from ((f"{attention}.{part}_proj_weight", (d_model, d_model)) for part in "qkv")
                else:
                    yield f"{attention}.in_proj_weight", (3 * d_model, d_model)
                if has_bias:
                    yield f"{attention}.in_proj_bias", (3 * d_model,)
                yield from affine(f"{attention}.out_proj", d_model, d_model)
            yield from affine(f"{layer}.linear1", d_ff, d_model)
            yield from affine(f"{layer}.linear2", d_model, d_ff)
            for number in range(1, len(attentions) + 2):
                yield from affine(f"{layer}.norm{number}", d_model)
        if config.norm_first or config.final_norm:
            yield from affine(f"{side}.norm", d_model)


def _stack(tensors: Tensors, side: str, config: ModelConfig) -> dict[str, Any]:
    """Parameters of our `Encoder` or `Decoder`."""
    count = config.num_encoder_layers if side == "encoder" else config.num_decoder_layers
    stack: dict[str, Any] = {
        "layers": {n: _layer(tensors, f"{side}.layers.{n}", _ATTENTIONS[side]) for n in range(count)}
    }
    if config.norm_first or config.final_norm:
        stack["norm"] = _norm(tensors, f"{side}.norm")
    return stack


def _layer(tensors: Tensors, layer: str, attentions: dict[str, str]) -> dict[str, Any]:
    parts: dict[str, Any] = {ours: _attention(tensors, f"{layer}.{theirs}") for ours, theirs in attentions.items()}
    parts["feed_forward"] = {
        "wide": _linear(tensors, f"{layer}.linear1"),
        "narrow": _linear(tensors, f"{layer}.linear2"),
    }
    norms = {
        f"{ours}_residual": {"norm": _norm(tensors, f"{layer}.norm{number}")}
        for number, ours in enumerate((*attentions, "feed_forward"), start=1)
    }
    return parts | norms


def _attention(tensors: Tensors, name: str) -> dict[str, Any]:
    if f"{name}.in_proj_weight" in tensors:
        weights = np.split(tensors[f"{name}.in_proj_weight"], 3)
    else:
        weights = [tensors[f"{name}.{part}_proj_weight"] for part in "qkv"]
    biases = np.split(_bias(tensors, f"{name}.in_proj_bias", 3 * len(weights[0])), 3)
    projections = {
        ours: {"kernel": weight.T, "bias": bias}
        for ours, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
    }
    return {**projections, "out": _linear(tensors, f"{name}.out_proj")}


def _linear(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    weight = tensors[f"{name}.weight"]
    return {"kernel": weight.T, "bias": _bias(tensors, f"{name}.bias", len(weight))}


def _norm(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    scale = tensors[f"{name}.weight"]
    return {"scale": scale, "bias": _bias(tensors, f"{name}.bias", len(scale))}


def _bias(tensors: Tensors, name: str, size: int) -> Float[np.ndarray, " {size}"]:
    """The bias, or the equivalent zeros of a model without biases."""
    return tensors.get(name, np.zeros(size, np.float32))
