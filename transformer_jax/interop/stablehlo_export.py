"""Models as StableHLO, compiled by whatever reads it: jax without this package, on a CPU, a GPU or a TPU."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from transformer_jax.interop import stablehlo_reader
from transformer_jax.interop.snippets import FOLDER, ONE_LIMIT, WITHOUT_RULES, longest_output, tokenizer_snippet
from transformer_jax.interop.stablehlo_reader import FORMAT, FORMAT_VERSION, SIGNATURE_FILE
from transformer_jax.nn import Cache, Memory
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.classification.text_classifier import TextClassifier
from transformer_jax.tasks.couplets.writer import CoupletWriter
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation.translator import Translator

PLATFORMS = ("cpu", "cuda", "tpu")
READER_FILE = "stablehlo_reader.py"

Model = Translator | CoupletWriter | TextClassifier


def export_stablehlo(model: str | Path | Model, out: str | Path) -> None:
    """Write a model as programs with its parameters inside, for `interop.stablehlo_reader`; README.md tells how.

    An encoder-decoder model becomes two: the encoder (source ids [B, S] to memory) and a step of decoding (tokens
    [B, K], cache of L slots, memory to logits [B, K, V] and the cache). A classifier becomes one: token ids [B, S] to
    probabilities [B, C]. B, K, S and L may be any sizes, and may change from call to call.

    Args:
        model: a model folder, or what `load` made of one.
        out: the folder to write, which must not exist.

    Raises:
        UserError: if flatbuffers is not installed, the model cannot be read or is of another kind, or `out` exists or
            cannot be written.
    """
    with new_folder(out) as folder:
        loaded = model if isinstance(model, Model) else load(model)
        if not isinstance(loaded, Model):
            raise UserError(
                f"{model} holds no model for text; export one that translates, classifies or writes couplets."
            )
        for name, content in _files(loaded).items():
            (folder / name).write_bytes(content)


def _files(loaded: Model) -> dict[str, bytes]:
    programs = _classifier_programs(loaded) if isinstance(loaded, TextClassifier) else _seq2seq_programs(loaded)
    try:
        files = {f"{name}.stablehlo": bytes(program.serialize()) for name, program in programs.items()}
    except ImportError as error:
        raise UserError("jax writes programs with flatbuffers; install it: pip install flatbuffers.") from error
    signature = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "jax_version": jax.__version__,
        "platforms": PLATFORMS,
        **_facts(loaded),
        "programs": {
            name: {
                "file": f"{name}.stablehlo",
                "sha256": hashlib.sha256(files[f"{name}.stablehlo"]).hexdigest(),
                "inputs": [str(aval) for aval in program.in_avals],
                "outputs": [str(aval) for aval in program.out_avals],
            }
            for name, program in programs.items()
        },
    }
    texts = {
        SIGNATURE_FILE: json.dumps(signature, indent=2, ensure_ascii=False) + "\n",
        "README.md": _readme(loaded),
    }
    reader = {READER_FILE: Path(stablehlo_reader.__file__).read_bytes()}
    return files | reader | loaded.tokenizer.files() | {name: text.encode("utf-8") for name, text in texts.items()}


def _seq2seq_programs(model: Translator | CoupletWriter) -> dict[str, export.Exported]:
    config = model.model_config

    def encode(source: Int[Array, "B S"]) -> dict[str, Any]:
        return model.model.remember(source)._asdict()

    def step(
        tokens: Int[Array, "B K"], cache: dict[str, Any], memory: dict[str, Any]
    ) -> tuple[Float[Array, "B K V"], dict[str, Any]]:
        logits, grown = model.model.step(tokens, Cache(**cache), Memory(**memory))
        return logits, grown._asdict()

    def sources(batch: Any, length: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length), jnp.int32)

    # An exported function knows the sizes of its own arguments only.
    encoder = _exported(encode, sources(*export.symbolic_shape("B, S")))
    batch, beams, source, slots = export.symbolic_shape("B, K, S, L", constraints=("L*K >= K",))
    head_width = config.d_model // config.num_heads
    heads, dtype = config.num_heads, jnp.dtype(config.dtype)
    keys = jax.ShapeDtypeStruct((batch, heads, head_width, slots * beams), dtype)
    values = jax.ShapeDtypeStruct((batch, heads, slots * beams, head_width), dtype)
    cache = {
        "keys_values": ((keys, values),) * config.num_decoder_layers,
        "length": jax.ShapeDtypeStruct((), jnp.int32),
        "ancestors": jax.ShapeDtypeStruct((batch, beams, slots), jnp.int32),
    }
    newest = jax.ShapeDtypeStruct((batch, beams), jnp.int32)
    memory = jax.eval_shape(encode, sources(batch, source))
    return {"encoder": encoder, "step": _exported(step, newest, cache, memory)}


def _classifier_programs(model: TextClassifier) -> dict[str, export.Exported]:
    def classify(tokens: Int[Array, "B S"]) -> Float[Array, "B C"]:
        return jax.nn.softmax(model.model(tokens)[:, 0])

    batch, length = export.symbolic_shape("B, S")
    return {"classifier": _exported(classify, jax.ShapeDtypeStruct((batch, length), jnp.int32))}


def _exported(function: Callable[..., Any], *arguments: Any) -> export.Exported:
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def _facts(model: Model) -> dict[str, Any]:
    """What a reader must know of the model."""
    config = model.model_config
    if isinstance(model, TextClassifier):
        special_tokens = model.tokenizer.special_tokens
        return {
            "kind": "classifier",
            "markers": special_tokens.to_json(),
            "classes": model.settings.classes,
            "max_length": min(model.settings.max_length, config.position_limit or math.inf),
        }
    return {
        "kind": "seq2seq",
        "markers": model.tokenizer.target.special_tokens.to_json(),
        "never": sorted({0, *(word[0] for word in model.settings.bad_words if len(word) == 1)}),
        "max_source_length": min(model.settings.max_source_length, config.position_limit or math.inf),
        "max_positions": config.position_limit,
        "dtype": config.dtype,
        "sizes": {
            "num_decoder_layers": config.num_decoder_layers,
            "num_heads": config.num_heads,
            "head_width": config.d_model // config.num_heads,
            "source_vocab_size": config.source_vocab_size,
            "target_vocab_size": config.target_vocab_size,
        },
    }


def _readme(model: Model) -> str:
    snippet = tokenizer_snippet(model, pieces=False)
    imports = "".join(f"{line}\n" for line in sorted({*snippet.imports, "import sys"}))
    packages = "jax flatbuffers numpy" + (" sentencepiece" if "sentencepiece" in imports else "")
    setup = "".join(f"\n{line}" for line in snippet.setup)
    if isinstance(model, TextClassifier):
        use = f"""def classify(texts):
    classes, longest = model.signature["classes"], model.signature["max_length"]
    tokens = [[{model.tokenizer.special_tokens.bos}, *{snippet.encode}][:longest] for text in texts]
    return [classes[row.argmax()] for row in model.probabilities(tokens)]"""
        programs = "`classifier.stablehlo`: token ids [B, S], 0 where padded, to probabilities [B, C]."
    else:
        use = f"""def translate(texts):
    sources = [{snippet.encode} for text in texts]
    ended = [[*source, {model.tokenizer.source.special_tokens.eos}] for source in sources]
    outputs = model.greedy(ended, max_length={longest_output(model)})
    return [{snippet.decode} for output in outputs]"""
        programs = """`encoder.stablehlo`: source ids [B, S], each with its end, 0 where padded, to what decoding needs.

`step.stablehlo`: the newest tokens [B, K], a cache with L slots and the memory to logits [B, K, V] and the cache.
When hypotheses move, so do their rows of `cache["ancestors"]` [B, K, L], and nothing else.

`model.encode`, `model.empty_cache` and `model.step` call them; `model.greedy` is a search in twenty lines."""
    notes = []
    if isinstance(model, Translator):
        notes.append(ONE_LIMIT)
    if isinstance(model, CoupletWriter):
        notes.append(WITHOUT_RULES)
    if not isinstance(model, TextClassifier) and any(len(word) > 1 for word in model.settings.bad_words):
        notes.append("Sequences of several tokens that transformer-jax never writes may come here.")
    remarks = "".join(f"\n\n{note}" for note in notes)
    return f"""# {model.settings.title}, as StableHLO

Exported from transformer-jax, with jax {jax.__version__}, for {", ".join(PLATFORMS)}.

## Use

Needs `pip install {packages}`, but not transformer-jax: `{READER_FILE}` lies in this folder.

```python
{imports}
folder = "{FOLDER}"
sys.path.append(folder)
from {Path(READER_FILE).stem} import load

model = load(folder){setup}


{use}
```

{programs}

The parameters are inside. B, K, S and L may be any sizes; `{SIGNATURE_FILE}` has the shapes and special-token ids.
A program is code: load only folders that you trust.{remarks}

## Limits

{model.settings.limits}
"""
