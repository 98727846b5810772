"""config.json of MarianMT and Pegasus as a `ModelConfig`, and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.errors import UserError
from transformer_jax.models import ModelConfig

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_ALWAYS = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
"""Fields of older folders; other values make a model that MarianMT is not."""
_LARGEST = 2**31


def model_config_of(path: Path, config: Mapping[str, Any]) -> ModelConfig:
    """The sizes and options of a MarianMT model.

    Args:
        path: of config.json, for messages.
        config: its content.

    Raises:
        UserError: naming the field that makes it another model, or is no size.
    """
    kind = config.get("model_type")
    if kind != "marian":
        raise UserError(f"{path}: model_type is {kind!r}, but only marian can be imported; name a MarianMT folder.")
    for name, expected in _ALWAYS.items():
        if config.get(name, expected) is not expected:
            raise _unlike(path, name, config[name], repr(expected))
    activation = config.get("activation_function", "gelu")
    if activation not in _ACTIVATIONS:
        raise _unlike(path, "activation_function", activation, f"one of {', '.join(_ACTIVATIONS)}")
    d_model = _size(path, config, "d_model")
    if d_model % 2:
        raise _unlike(path, "d_model", d_model, "even, for sinusoids")
    num_heads = _both(path, config, "attention_heads")
    if d_model % num_heads:
        raise _unlike(path, "encoder_attention_heads", num_heads, f"a divisor of d_model, which is {d_model}")
    shares = flag(path, config, "share_encoder_decoder_embeddings", True)
    vocab_size = _size(path, config, "vocab_size")
    tied = flag(path, config, "tie_word_embeddings", True)
    return ModelConfig(
        d_model=d_model,
        num_heads=num_heads,
        d_ff=_both(path, config, "ffn_dim"),
        num_encoder_layers=_size(path, config, "encoder_layers", smallest=0),
        num_decoder_layers=_size(path, config, "decoder_layers", smallest=0),
        dropout_rate=_rate(path, config, "dropout", 0.1),
        attention_dropout_rate=_rate(path, config, "attention_dropout", 0.0),
        activation=_ACTIVATIONS[activation],
        # Which tables are equal though they need not be is known only when they are read.
        tie_embeddings=("all" if shares else "output") if tied else "none",
        output_bias=True,
        scale_embeddings=flag(path, config, "scale_embedding", False),
        source_vocab_size=vocab_size,
        target_vocab_size=vocab_size
        if shares or config.get("decoder_vocab_size") is None
        else _size(path, config, "decoder_vocab_size"),
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


def flag(path: Path, config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false.

    Raises:
        UserError: naming it, if it is neither.
    """
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise _unlike(path, name, value, "true or false")
    return value


def _both(path: Path, config: Mapping[str, Any], name: str) -> int:
    encoder, decoder = (_size(path, config, f"{side}_{name}") for side in ("encoder", "decoder"))
    if encoder != decoder:
        raise _unlike(path, f"decoder_{name}", decoder, f"encoder_{name}, which is {encoder}, for this package")
    return encoder


def _size(path: Path, config: Mapping[str, Any], name: str, *, smallest: int = 1) -> int:
    value = config.get(name)
    if type(value) is not int or not smallest <= value < _LARGEST:
        raise _unlike(path, name, value, f"a whole number from {smallest} on")
    return value


def _rate(path: Path, config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= 0.99:
        raise _unlike(path, name, value, "between 0 and 0.99")
    return float(value)


def _unlike(path: Path, name: str, value: object, remedy: str) -> UserError:
    return UserError(f"{path}: {name} is {value!r}, but must be {remedy}; name another model.")
