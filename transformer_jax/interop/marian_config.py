"""config.json of MarianMT and Pegasus as a `ModelConfig`, and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.interop.fields import flag, number, unlike, whole
from transformer_jax.models import ModelConfig

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_ALWAYS = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
"""Fields of older folders; other values make a model that MarianMT is not."""


def model_config_of(path: Path, config: Mapping[str, Any]) -> ModelConfig:
    """The sizes and options of a MarianMT model.

    Args:
        path: of config.json, for messages.
        config: its content.

    Raises:
        UserError: naming the field that makes it another model, or is no size.
    """
    if config.get("model_type") != "marian":
        raise unlike(path, config, "model_type", "marian, as only MarianMT can be imported")
    for name, expected in _ALWAYS.items():
        if config.get(name, expected) is not expected:
            raise unlike(path, config, name, json.dumps(expected))
    activation = config.get("activation_function", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise unlike(path, config, "activation_function", f"one of {', '.join(_ACTIVATIONS)}")
    d_model = whole(path, config, "d_model", smallest=1)
    if d_model % 2:
        raise unlike(path, config, "d_model", "even, for sinusoids")
    num_heads = _both(path, config, "attention_heads")
    if d_model % num_heads:
        raise unlike(path, config, "encoder_attention_heads", f"a divisor of d_model, which is {d_model}")
    shares = flag(path, config, "share_encoder_decoder_embeddings", True)
    vocab_size = whole(path, config, "vocab_size", smallest=1)
    tied = flag(path, config, "tie_word_embeddings", True)
    return ModelConfig(
        d_model=d_model,
        num_heads=num_heads,
        d_ff=_both(path, config, "ffn_dim"),
        num_encoder_layers=whole(path, config, "encoder_layers", smallest=0),
        num_decoder_layers=whole(path, config, "decoder_layers", smallest=0),
        dropout_rate=number(path, config, "dropout", 0.1, 0.0, 0.99),
        attention_dropout_rate=number(path, config, "attention_dropout", 0.0, 0.0, 0.99),
        activation=_ACTIVATIONS[activation],
        # Which tables are equal though they need not be is known only when they are read.
        tie_embeddings=("all" if shares else "output") if tied else "none",
        output_bias=True,
        scale_embeddings=flag(path, config, "scale_embedding", False),
        source_vocab_size=vocab_size,
        target_vocab_size=vocab_size
        if shares or config.get("decoder_vocab_size") is None
        else whole(path, config, "decoder_vocab_size", smallest=1),
    )


def config_json_of(model: ModelConfig, architecture: str, *, max_positions: int) -> dict[str, Any]:
    """The sizes and options of `config.json`; the ids of markers are added by `generation_json_of`.

    Args:
        model: the sizes and options.
        architecture: "marian" or "pegasus".
        max_positions: rows of the table of positions.
    """
    names = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}
    config = {
        "architectures": [names[architecture]],
        "model_type": architecture,
        "activation_function": model.activation,
        "attention_dropout": model.attention_dropout_rate,
        "d_model": model.d_model,
        "dropout": model.dropout_rate,
        "dtype": "float32",
        "is_encoder_decoder": True,
        "max_position_embeddings": max_positions,
        "num_hidden_layers": model.num_encoder_layers,
        "scale_embedding": model.scale_embeddings,
        "tie_word_embeddings": model.tie_embeddings in ("all", "output"),
        "vocab_size": model.source_vocab_size,
    }
    for side, layers in (("encoder", model.num_encoder_layers), ("decoder", model.num_decoder_layers)):
        config[f"{side}_layers"] = layers
        config[f"{side}_attention_heads"] = model.num_heads
        config[f"{side}_ffn_dim"] = model.d_ff
    if architecture == "marian":
        config["share_encoder_decoder_embeddings"] = model.tie_embeddings == "all"
        config["decoder_vocab_size"] = model.target_vocab_size
    return config


def _both(path: Path, config: Mapping[str, Any], name: str) -> int:
    encoder, decoder = (whole(path, config, f"{side}_{name}", smallest=1) for side in ("encoder", "decoder"))
    if encoder != decoder:
        raise unlike(path, config, f"decoder_{name}", f"encoder_{name}, which is {encoder}, for this package")
    return encoder
