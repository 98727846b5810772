"""Encoder-decoder models for CTranslate2, a fast inference engine in C++."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from transformer_jax.data import PAD
from transformer_jax.interop.snippets import FOLDER, ONE_LIMIT, longest_output, packages_of, tokenizer_snippet
from transformer_jax.nn.attention import sinusoidal_positions
from transformer_jax.nn.layers import LAYER_NORM_EPSILON
from transformer_jax.system import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH"}
_FEWEST_POSITIONS = 1024


def export_ctranslate2(
    model: str | Path | Seq2SeqModel[Any], out: str | Path, *, quantization: str = "float32"
) -> None:
    """Write an encoder-decoder model as a folder for `ctranslate2.Translator`; its README.md shows how to call it.

    Args:
        model: a model folder, or the object that `load` returns for one.
        out: the folder to write, which must not exist.
        quantization: type of the stored weights: float32, int8, int8_float32, float16 or another of CTranslate2's.

    Raises:
        UserError: if CTranslate2 is not installed, the model is not an encoder-decoder for text, `quantization` is
            unknown, or `out` exists or cannot be written.
    """
    try:
        converters: Any = importlib.import_module("ctranslate2.converters")
        specs = importlib.import_module("ctranslate2.specs")
        types = importlib.import_module("ctranslate2.specs.model_spec").ACCEPTED_MODEL_TYPES
    except ImportError as error:
        raise UserError("CTranslate2 is not installed; install it: pip install ctranslate2.") from error
    if quantization not in types:
        raise UserError(f"quantization is {quantization!r}, but must be one of {', '.join(types)}.")
    with new_folder(out) as folder:
        loaded = load(model) if isinstance(model, str | os.PathLike) else model
        if not isinstance(loaded, Seq2SeqModel):
            remedy = "name one" if loaded.tokenizer is None else "export it with --to stablehlo"
            raise UserError(f"{model} is not an encoder-decoder model for text; {remedy}.")
        readme = _readme(loaded, quantization)

        class Converter(converters.Converter):
            def _load(self) -> Any:
                return _specification(loaded, specs)

        Converter().convert(str(folder), quantization=quantization, force=True)
        for name, content in loaded.tokenizer.files().items():
            (folder / name).write_bytes(content)
        (folder / "README.md").write_text(readme, encoding="utf-8")


def _specification(model: Seq2SeqModel[Any], specs: Any) -> Any:
    """CTranslate2's specification of the model, with its weights."""
    config, params = model.model_config, model.params
    spec = specs.TransformerSpec.from_config(
        (config.num_encoder_layers, config.num_decoder_layers),
        config.num_heads,
        # Here: whether stacks end with a norm. The order within layers is set below.
        pre_norm=config.norm_first or config.final_norm,
        activation=specs.Activation[_ACTIVATIONS[config.activation]],
    )
    target_table = params["target_embedding"]["table"]
    for side, ours, theirs in (
        ("source", params["encoder"], spec.encoder),
        ("target", params["decoder"], spec.decoder),
    ):
        theirs.pre_norm = config.norm_first
        theirs.scale_embeddings = config.scale_embeddings
        theirs.position_encodings.encodings = _position_table(model, params.get(f"{side}_embedder", {}))
        if "norm" in ours:
            _set_norm(theirs.layer_norm, ours["norm"])
        for index, layer in enumerate(theirs.layer):
            _set_layer(layer, ours["layers"][index])
    spec.encoder.embeddings[0].weight = np.array(params.get("source_embedding", {}).get("table", target_table))
    spec.decoder.embeddings.weight = np.array(target_table)
    spec.decoder.projection.weight = np.array(params.get("output_embedding", {}).get("table", target_table))
    if config.output_bias:
        spec.decoder.projection.bias = np.array(params["output_bias"])
    source, target = model.tokenizer.source, model.tokenizer.target
    spec.register_source_vocabulary([source.piece(token) for token in range(source.vocab_size)])
    spec.register_target_vocabulary([target.piece(token) for token in range(target.vocab_size)])
    special_tokens = target.special_tokens
    spec.config.layer_norm_epsilon = LAYER_NORM_EPSILON
    spec.config.decoder_start_token = target.piece(special_tokens.bos)
    spec.config.bos_token = target.piece(special_tokens.bos)
    spec.config.eos_token = target.piece(special_tokens.eos)
    spec.config.unk_token = target.piece(special_tokens.unk)
    spec.config.add_source_eos = True
    return spec


def _position_table(model: Seq2SeqModel[Any], embedder: Any) -> Float[np.ndarray, "P D"]:
    if "learned" in embedder:
        return np.array(embedder["learned"])
    settings = model.settings
    longest = settings.max_source_length + settings.decoding.max_extra_tokens
    rows = jnp.arange(max(longest, settings.decoding.max_length, _FEWEST_POSITIONS))
    return np.array(sinusoidal_positions(rows, model.model_config.d_model))


def _set_layer(theirs: Any, ours: Any) -> None:
    attention = ours["self_attention"]
    _set_linear(theirs.self_attention.linear[0], *(attention[name] for name in ("query", "key", "value")))
    _set_linear(theirs.self_attention.linear[1], attention["out"])
    _set_norm(theirs.self_attention.layer_norm, ours["self_attention_residual"]["norm"])
    if "cross_attention" in ours:
        attention = ours["cross_attention"]
        _set_linear(theirs.attention.linear[0], attention["query"])
        _set_linear(theirs.attention.linear[1], attention["key"], attention["value"])
        _set_linear(theirs.attention.linear[2], attention["out"])
        _set_norm(theirs.attention.layer_norm, ours["cross_attention_residual"]["norm"])
    _set_linear(theirs.ffn.linear_0, ours["feed_forward"]["wide"])
    _set_linear(theirs.ffn.linear_1, ours["feed_forward"]["narrow"])
    _set_norm(theirs.ffn.layer_norm, ours["feed_forward_residual"]["norm"])


def _set_linear(theirs: Any, *ours: Any) -> None:
    """Fuse our layers into one of theirs, with concatenated outputs."""
    theirs.weight = np.concatenate([np.asarray(linear["kernel"]).T for linear in ours])
    theirs.bias = np.concatenate([np.asarray(linear["bias"]) for linear in ours])


def _set_norm(theirs: Any, ours: Any) -> None:
    theirs.gamma, theirs.beta = np.array(ours["scale"]), np.array(ours["bias"])


def _readme(model: Seq2SeqModel[Any], quantization: str) -> str:
    snippet = tokenizer_snippet(model, pieces=True)
    decoding, target = model.settings.decoding, model.tokenizer.target
    special_tokens = target.special_tokens
    never = dict.fromkeys(((PAD,), *model.settings.bad_words))
    unknown = (special_tokens.unk,) in never
    sequences = [[target.piece(token) for token in word] for word in never if word != (special_tokens.unk,)]
    imports = "".join(f"{line}\n" for line in (*snippet.imports, "import ctranslate2"))
    setup = "".join(f"\n{line}" for line in snippet.setup)
    search = model.not_exported or (
        f'transformer-jax searches the same way, with the same outputs, with `conventions="ctranslate2"`.\n{ONE_LIMIT}'
    )
    return f"""# {model.settings.title}, for CTranslate2

Exported from transformer-jax for [CTranslate2](https://opennmt.net/CTranslate2), stored as {quantization}.

## Use

Needs `pip install ctranslate2{packages_of(snippet.imports)}`.

```python
{imports}
folder = "{FOLDER}"
translator = ctranslate2.Translator(folder){setup}


def translate(texts):
    sources = [{snippet.encode} for text in texts]
    results = translator.translate_batch(
        sources,
        beam_size={decoding.beam_size},
        length_penalty={decoding.alpha},
        disable_unk={unknown},
        suppress_sequences={json.dumps(sequences, ensure_ascii=False)},
        max_input_length=0,
        min_decoding_length=0,
        max_decoding_length={longest_output(model)},
        max_batch_size={decoding.batch_size},
    )
    outputs = [result.hypotheses[0] for result in results]
    return [{snippet.decode} for output in outputs]
```

CTranslate2 appends the end of sentence to its input. It ranks outputs by log-probability / length^{decoding.alpha}
and stops when {decoding.beam_size} hypotheses have ended. `max_input_length=0` keeps it from truncating long texts
silently.

{search}

## Limits

{model.settings.limits}
"""
