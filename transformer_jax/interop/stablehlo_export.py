"""Models as StableHLO programs, which jax runs without this package on a CPU, a GPU or a TPU."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, Int

from transformer_jax.interop import stablehlo_reader
from transformer_jax.interop.snippets import FOLDER, ONE_LIMIT, Snippet, longest_output, packages_of, tokenizer_snippet
from transformer_jax.interop.stablehlo_reader import FORMAT, FORMAT_VERSION, SIGNATURE_FILE
from transformer_jax.nn import Cache, Classifier, Memory
from transformer_jax.system import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel

PLATFORMS = ("cpu", "cuda", "tpu")
READER_FILE = "stablehlo_reader.py"


def export_stablehlo(model: str | Path | Any, out: str | Path) -> None:
    """Write a model as programs that contain its parameters, for `interop.stablehlo_reader`.

    An encoder-decoder model becomes two programs: the encoder (source ids [B, S] to memory) and one decoding step
    (tokens [B, K], cache of L slots, memory to logits [B, K, V] and cache). A classifier becomes one: token ids [B, S]
    to probabilities [B, C]. B, K, S and L are free, and may change from call to call. The folder's README.md shows how
    to call them.

    Args:
        model: a model folder, or the object that `load` returns for one.
        out: the folder to write, which must not exist.

    Raises:
        UserError: if flatbuffers is not installed, the model cannot be read or is of another architecture, or `out`
            exists or cannot be written.
    """
    with new_folder(out) as folder:
        loaded = load(model) if isinstance(model, str | os.PathLike) else model
        for name, content in _files(loaded, _export(loaded, str(model))).items():
            (folder / name).write_bytes(content)


class _Export(NamedTuple):
    """The parts of an export that depend on the architecture."""

    programs: dict[str, export.Exported]
    facts: dict[str, Any]
    """Fields of the signature."""
    use: str
    """The function in the README, in Python."""
    explanation: str
    """The README's text on the programs."""
    notes: list[str]
    """The README's text on how the outputs differ from those of this package."""


def _export(model: Any, name: str) -> _Export:
    if isinstance(model, Seq2SeqModel):
        return _seq2seq_export(model, tokenizer_snippet(model, pieces=False))
    if model.model_type is Classifier:
        return _classifier_export(model, tokenizer_snippet(model, pieces=False))
    raise UserError(f"{name} is neither an encoder-decoder model for text nor a classifier; name one.")


def _seq2seq_export(model: Seq2SeqModel[Any], snippet: Snippet) -> _Export:
    config, settings, tokenizer = model.model_config, model.settings, model.tokenizer
    notes = [model.not_exported or ONE_LIMIT]
    if any(len(word) > 1 for word in settings.bad_words):
        notes.append("Sequences of several tokens that transformer-jax never writes may occur here.")
    return _Export(
        _seq2seq_programs(model),
        {
            "kind": "seq2seq",
            "markers": tokenizer.target.special_tokens.to_json(),
            "never": sorted({0, *(word[0] for word in settings.bad_words if len(word) == 1)}),
            "max_source_length": min(settings.max_source_length, config.position_limit or math.inf),
            "max_positions": config.position_limit,
            "dtype": config.dtype,
            "sizes": {
                "num_decoder_layers": config.num_decoder_layers,
                "num_heads": config.num_heads,
                "head_width": config.d_model // config.num_heads,
                "source_vocab_size": config.source_vocab_size,
                "target_vocab_size": config.target_vocab_size,
            },
        },
        f"""def translate(texts):
    sources = [{snippet.encode} for text in texts]
    ended = [[*source, {tokenizer.source.special_tokens.eos}] for source in sources]
    outputs = model.greedy(ended, max_length={longest_output(model)})
    return [{snippet.decode} for output in outputs]""",
        """`encoder.stablehlo`: source ids [B, S], each with its end, padded with 0, to the memory that decoding reads.

`step.stablehlo`: the newest tokens [B, K], a cache with L slots and the memory to logits [B, K, V] and the cache.
When hypotheses are reordered, so are their rows of `cache["ancestors"]` [B, K, L], and nothing else.

`model.encode`, `model.empty_cache` and `model.step` call them; `model.greedy` is a search in twenty lines.""",
        notes,
    )


def _seq2seq_programs(model: Seq2SeqModel[Any]) -> dict[str, export.Exported]:
    config = model.model_config

    def encode(source: Int[Array, "B S"]) -> dict[str, Any]:
        return model.model.remember(source)._asdict()

    def step(
        tokens: Int[Array, "B K"], cache: dict[str, Any], memory: dict[str, Any]
    ) -> tuple[Float[Array, "B K V"], dict[str, Any]]:
        logits, new_cache = model.model.step(tokens, Cache(**cache), Memory(**memory))
        return logits, new_cache._asdict()

    def sources(batch: Any, length: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, length), jnp.int32)

    # Each exported function has a scope of symbolic sizes of its own.
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


def _classifier_export(model: Any, snippet: Snippet) -> _Export:
    special_tokens, settings = model.tokenizer.special_tokens, model.settings

    def classify(tokens: Int[Array, "B S"]) -> Float[Array, "B C"]:
        return jax.nn.softmax(model.model(tokens)[:, 0])

    batch, length = export.symbolic_shape("B, S")
    return _Export(
        {"classifier": _exported(classify, jax.ShapeDtypeStruct((batch, length), jnp.int32))},
        {
            "kind": "classifier",
            "markers": special_tokens.to_json(),
            "classes": settings.classes,
            "max_length": min(settings.max_length, model.model_config.position_limit or math.inf),
        },
        f"""def classify(texts):
    classes, longest = model.signature["classes"], model.signature["max_length"]
    tokens = [[{special_tokens.bos}, *{snippet.encode}][:longest] for text in texts]
    return [classes[row.argmax()] for row in model.probabilities(tokens)]""",
        "`classifier.stablehlo`: token ids [B, S], padded with 0, to probabilities [B, C].",
        [],
    )


def _exported(function: Callable[..., Any], *arguments: Any) -> export.Exported:
    return export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)


def _files(model: Any, exported: _Export) -> dict[str, bytes]:
    try:
        files = {f"{name}.stablehlo": bytes(program.serialize()) for name, program in exported.programs.items()}
    except ImportError as error:
        raise UserError("jax serializes programs with flatbuffers; install it: pip install flatbuffers.") from error
    signature = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "jax_version": jax.__version__,
        "platforms": PLATFORMS,
        **exported.facts,
        "programs": {
            name: {
                "file": f"{name}.stablehlo",
                "sha256": hashlib.sha256(files[f"{name}.stablehlo"]).hexdigest(),
                "inputs": [str(aval) for aval in program.in_avals],
                "outputs": [str(aval) for aval in program.out_avals],
            }
            for name, program in exported.programs.items()
        },
    }
    texts = {
        SIGNATURE_FILE: json.dumps(signature, indent=2, ensure_ascii=False) + "\n",
        "README.md": _readme(model, exported),
    }
    reader = {READER_FILE: Path(stablehlo_reader.__file__).read_bytes()}
    return files | reader | model.tokenizer.files() | {name: text.encode("utf-8") for name, text in texts.items()}


def _readme(model: Any, exported: _Export) -> str:
    snippet = tokenizer_snippet(model, pieces=False)
    imports = "".join(f"{line}\n" for line in sorted({*snippet.imports, "import sys"}))
    packages = "jax flatbuffers numpy" + packages_of(snippet.imports)
    setup = "".join(f"\n{line}" for line in snippet.setup)
    notes = "".join(f"\n\n{note}" for note in exported.notes)
    return f"""# {model.settings.title}, as StableHLO

Exported from transformer-jax, with jax {jax.__version__}, for {", ".join(PLATFORMS)}.

## Use

Needs `pip install {packages}`, but not transformer-jax: `{READER_FILE}` is in this folder.

```python
{imports}
folder = "{FOLDER}"
sys.path.append(folder)
from {Path(READER_FILE).stem} import load

model = load(folder){setup}


{exported.use}
```

{exported.explanation}

The programs contain the parameters. B, K, S and L are free; `{SIGNATURE_FILE}` has the shapes and special-token ids.
A program is code: load only folders that you trust.{notes}

## Limits

{model.settings.limits}
"""
