"""JSON files of MarianMT and Pegasus: config.json as a `ModelConfig`, generation_config.json as settings, and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.data import SpecialTokens
from transformer_jax.interop.marian_layout import Numbering
from transformer_jax.interop.reading import flag, number, unlike, whole
from transformer_jax.nn import ModelConfig
from transformer_jax.system import FieldError
from transformer_jax.tasks.seq2seq_model import Seq2SeqSettings

ARCHITECTURES = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}
"""Architectures that can be exported, and the class of transformers that loads each."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
_ALWAYS = {
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
}
"""Fields of older folders, and the only values that MarianMT implements."""
_NEUTRAL: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "constraints": None,
    "guidance_scale": None,
}
"""Fields that change the search in ways not supported here, and the values that change nothing."""
_MARIAN_LENGTH = 512
_LARGEST_PENALTY = 10.0
"""Single precision holds the tenth power of any length."""


def model_config_of(path: Path, config: Mapping[str, Any]) -> ModelConfig:
    """The sizes and options of a MarianMT model.

    Args:
        path: of config.json, for messages.
        config: its content.

    Raises:
        UserError: naming the field, if its value is not one of MarianMT or not a size.
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
    try:
        return ModelConfig(
            d_model=d_model,
            num_heads=num_heads,
            d_ff=_both(path, config, "ffn_dim"),
            num_encoder_layers=whole(path, config, "encoder_layers", smallest=0),
            num_decoder_layers=whole(path, config, "decoder_layers", smallest=0),
            dropout_rate=number(path, config, "dropout", 0.1, 0.0, 0.99),
            attention_dropout_rate=number(path, config, "attention_dropout", 0.0, 0.0, 0.99),
            activation=_ACTIVATIONS[activation],
            # Untied tables may still be equal, which only the weights show.
            tie_embeddings=("all" if shares else "output") if tied else "none",
            output_bias=True,
            scale_embeddings=flag(path, config, "scale_embedding", False),
            source_vocab_size=vocab_size,
            target_vocab_size=vocab_size
            if shares or config.get("decoder_vocab_size") is None
            else whole(path, config, "decoder_vocab_size", smallest=1),
        )
    except FieldError as error:
        raise error.named(lambda name: f"{path}: {name.removeprefix('num_')}") from None


def _both(path: Path, config: Mapping[str, Any], name: str) -> int:
    encoder, decoder = (whole(path, config, f"{side}_{name}", smallest=1) for side in ("encoder", "decoder"))
    if encoder != decoder:
        raise unlike(path, config, f"decoder_{name}", f"encoder_{name}, which is {encoder}, for this package")
    return encoder


def config_json_of(model: ModelConfig, architecture: str, *, max_positions: int) -> dict[str, Any]:
    """The content of config.json, without the ids of special tokens; see `generation_json_of`.

    Args:
        model: sizes and options.
        architecture: one of `ARCHITECTURES`.
        max_positions: rows of the table of positions.
    """
    config = {
        "architectures": [ARCHITECTURES[architecture]],
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


def settings_of(
    path: Path, generation: Mapping[str, Any], numbering: Numbering, end: int, max_positions: int
) -> dict[str, Any]:
    """Fields of `Seq2SeqSettings` that make the search find the outputs of transformers' `generate`.

    Args:
        path: the file, for messages.
        generation: its content; missing fields have Marian's defaults.
        numbering: numbering of the target vocabulary.
        end: our id of the end of a sentence.
        max_positions: tokens of the longest source.

    Raises:
        UserError: naming the field, if it asks for a search that this package does not have.
    """
    given = {name: value for name, value in generation.items() if value is not None}
    for name, neutral in _NEUTRAL.items():
        if given.get(name, neutral) not in (neutral, [], {}):
            raise unlike(path, given, name, json.dumps(neutral))
    # Theirs counts the start and the end, ours the end alone.
    new_tokens = whole(path, given, "max_new_tokens", 0, smallest=0)
    max_length = new_tokens + 1 if new_tokens else whole(path, given, "max_length", _MARIAN_LENGTH, smallest=0)
    if max_length < 3:
        raise unlike(path, given, "max_new_tokens" if new_tokens else "max_length", "larger, to hold a token")
    # Beyond the table of positions theirs fails.
    max_length = min(max_length, max_positions + 1)
    return {
        "max_source_length": max_positions,
        "decoding": {
            "conventions": "transformers",
            "beam_size": whole(path, given, "num_beams", 1, smallest=1),
            "alpha": number(path, given, "length_penalty", 1.0, -_LARGEST_PENALTY, _LARGEST_PENALTY),
            "max_length": max_length - 1,
            "max_extra_tokens": max_length,
        },
        "bad_words": _bad_words(path, given, numbering, end),
        "renormalizes": flag(path, given, "renormalize_logits", False),
    }


def _bad_words(path: Path, generation: Mapping[str, Any], numbering: Numbering, end: int) -> list[list[int]]:
    words = generation.get("bad_words_ids") or [[numbering.padding]]
    if not isinstance(words, list) or not all(
        isinstance(word, list) and word and all(type(item) is int and 0 <= item < numbering.size for item in word)
        for word in words
    ):
        raise unlike(path, generation, "bad_words_ids", f"lists of ids from 0 to {numbering.size - 1}")
    here = [[numbering.here(item) for item in word] for word in words]
    # transformers ignores a ban on the end; our search never writes padding.
    return [word for word in here if word != [end]] or [[0]]


def generation_json_of(
    settings: Seq2SeqSettings, special_tokens: SpecialTokens, numbering: Numbering
) -> dict[str, Any]:
    """The content of generation_config.json that makes `generate` search like the model with these settings.

    With the conventions of transformers it finds the same outputs. With others, the length penalty becomes
    length**alpha, and outputs of all sources share one limit.
    """
    decoding = settings.decoding
    start, end = numbering.there(special_tokens.bos), numbering.there(special_tokens.eos)
    bad_words = [[numbering.there(token_id) for token_id in word] for word in settings.bad_words]
    padding = [numbering.padding]
    return {
        "bad_words_ids": bad_words if padding in bad_words else [*bad_words, padding],
        "bos_token_id": end if start == numbering.padding else start,
        "decoder_start_token_id": start,
        "early_stopping": False,
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "length_penalty": decoding.alpha,
        "max_length": max_length_of(settings),
        "num_beams": decoding.beam_size,
        "pad_token_id": numbering.padding,
        "renormalize_logits": settings.renormalizes,
    }


def max_length_of(settings: Seq2SeqSettings) -> int:
    """`max_length` of transformers: tokens of the longest output, start and end included."""
    decoding = settings.decoding
    by_source = settings.max_source_length + decoding.max_extra_tokens + 1
    return min(decoding.max_length + 1, by_source) if decoding.max_length else by_source


def check_special_tokens(
    path: Path, values: Mapping[str, Any], numberings: tuple[Numbering, Numbering], end: int
) -> None:
    """Check that the ids of special tokens in a file are those of the vocabularies.

    Args:
        path: of config.json or generation_config.json, for messages.
        values: its content.
        numberings: of source and target.
        end: our id of the end of a sentence.

    Raises:
        UserError: naming the field that differs.
    """
    ends, paddings = [numberings[1].there(end)], [numbering.padding for numbering in numberings]
    for name, ids in (("eos_token_id", ends), ("forced_eos_token_id", ends), ("pad_token_id", paddings)):
        value = values.get(name)
        if value is not None and not (type(value) is int and value in ids) and value != ends:
            raise unlike(path, values, name, f"{ids[0]}, as in the vocabulary")
