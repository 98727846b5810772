"""MarianMT folders of Hugging Face transformers in, MarianMT and Pegasus folders out."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from transformer_jax.data.readers import encodable
from transformer_jax.data.tokenizers import TokenizerPair
from transformer_jax.interop.marian_config import (
    ARCHITECTURES,
    check_special_tokens,
    config_json_of,
    generation_json_of,
    max_length_of,
    model_config_of,
    settings_of,
)
from transformer_jax.interop.marian_layout import (
    BIAS,
    DECODER,
    ENCODER,
    OUTPUT,
    POSITIONS,
    SHARED,
    TOKENIZER_CONFIG,
    from_marian,
    marian_shapes,
    numbering_of,
    read_tokenizers,
    sides_of,
    sinusoids,
    to_marian,
    write_json,
    write_tokenizers,
)
from transformer_jax.interop.reading import (
    WEIGHTS_FILE,
    check_tensors,
    listed,
    read_json,
    read_weights,
    unlike,
    whole,
)
from transformer_jax.interop.snippets import FOLDER, ONE_LIMIT, imports_of, packages_of
from transformer_jax.nn import ModelConfig
from transformer_jax.system import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import load, save
from transformer_jax.tasks.registry import IMPORTED_SEQ2SEQ
from transformer_jax.tasks.seq2seq_model import Seq2SeqModel

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_START = "decoder_start_token_id"
_POSITION_TOLERANCE = 5e-3
"""Half of the last place of bfloat16 below 1: folders may hold rounded sinusoids."""
_LANGUAGE = r"[\w.@+ -]{0,256}"
"""Names of languages go into the titles of READMEs, where a stranger's text must not add lines."""

Tensors = dict[str, np.ndarray]


def import_marian(source: str | Path, out: str | Path) -> None:
    """Make a model folder of a MarianMT folder, such as those of the OPUS-MT models.

    Its outputs are, token for token, those of `MarianMTModel.generate` with the folder's own settings.

    Args:
        source: a folder with config.json, model.safetensors (or its shards and their index), source.spm, target.spm
            and vocab.json; generation_config.json, tokenizer_config.json and target_vocab.json are used if present.
        out: the folder to write; it must not exist.

    Raises:
        UserError: if a file is missing, damaged, a link or a pickle; if this package does not support the model,
            naming the field or every tensor; if `out` exists or cannot be written.
    """
    folder = Path(source)
    if not os.path.isdir(folder):  # unlike folder.is_dir, accepts names of any length
        raise UserError(f"{source} is not a folder; name a MarianMT folder, with config.json and model.safetensors.")
    path = folder / _CONFIG
    config = read_json(folder, _CONFIG)
    model = model_config_of(path, config)
    max_positions = whole(path, config, "max_position_embeddings", 1024, smallest=2)
    tensors = _checked(folder, read_weights(folder), model, config)

    # `generate` reads the second file if there is one.
    searching, generation = path, config
    if os.path.lexists(folder / _GENERATION):
        searching, generation = folder / _GENERATION, read_json(folder, _GENERATION)
    has_start = generation.get(_START) is not None
    starting = (searching, generation) if has_start else (path, config)
    start = whole(*starting, _START, smallest=0, below=model.target_vocab_size)

    tokenizer_config = read_json(folder, TOKENIZER_CONFIG) if os.path.lexists(folder / TOKENIZER_CONFIG) else {}
    sizes = model.source_vocab_size, model.target_vocab_size
    source_side, target_side = read_tokenizers(folder, tokenizer_config, *sizes, start)
    numberings = source_numbering, target_numbering = numbering_of(source_side), numbering_of(target_side)
    for place, values in ((path, config), (searching, generation)):
        check_special_tokens(place, values, numberings, target_side.special_tokens.eos)
    if model.one_vocabulary and source_numbering != target_numbering:
        raise UserError(f"{folder}: both sides share their embeddings, so {_CONFIG} must not have vocabularies apart.")

    settings = settings_of(searching, generation, target_numbering, target_side.special_tokens.eos, max_positions)
    for name, field in (("source_language", "source_lang"), ("target_language", "target_lang")):
        language = tokenizer_config.get(field) or ""
        if not isinstance(language, str) or not re.fullmatch(_LANGUAGE, language):
            remedy = "the name of a language, such as de"
            raise unlike(folder / TOKENIZER_CONFIG, tokenizer_config, field, remedy)
        settings[name] = language

    if (
        model.tie_embeddings == "none"
        and source_numbering == target_numbering
        and np.array_equal(tensors[ENCODER], tensors[DECODER])
    ):
        del tensors[ENCODER]
        model = dataclasses.replace(model, tie_embeddings="inputs")
    params = from_marian(tensors, model, *numberings)
    with new_folder(out) as new:
        save(
            new,
            task=IMPORTED_SEQ2SEQ,
            model_config=model,
            params=params,
            tokenizer_files=TokenizerPair(source_side, target_side, joint=False).files(),
            settings=settings,
            scores={},
            origin={"imported from": f"a MarianMT model, {encodable(folder.resolve().name)}"},
        )


def _checked(folder: Path, tensors: Tensors, model: ModelConfig, config: dict[str, Any]) -> Tensors:
    """The tensors that the model needs, one for each table; from here on the sizes in config.json can be trusted."""
    layers = model.num_encoder_layers + model.num_decoder_layers
    if layers > len(tensors):  # before a loop over layers: the number is not trusted
        raise UserError(f"{folder} has {len(tensors):,} tensors, too few for {layers:,} layers; copy it again.")
    tensors = dict(tensors)
    for name in POSITIONS:
        if name in tensors:
            _check_positions(folder, name, tensors.pop(name), model.d_model)
    if model.tie_embeddings == "all":
        _merge(folder, tensors, SHARED, (ENCODER, DECODER, OUTPUT))
    elif model.tie_embeddings == "output":
        _merge(folder, tensors, DECODER, (OUTPUT,))
    elif config.get("share_encoder_decoder_embeddings", True) and SHARED in tensors:
        # transformers 4 stores the shared table; 5 stores and reads one for each side, and these may differ.
        shared = tensors.pop(SHARED)
        for name in (ENCODER, DECODER):
            tensors.setdefault(name, shared)
    tensors.setdefault(BIAS, np.zeros((1, model.target_vocab_size), np.float32))
    check_tensors(folder, tensors, marian_shapes(model))
    return tensors


def _merge(folder: Path, tensors: Tensors, kept: str, others: tuple[str, ...]) -> None:
    """Keep one of several copies of a table that config.json says is shared."""
    present = [name for name in (kept, *others) if name in tensors]
    tables = [tensors.pop(name) for name in present]
    if any(not np.array_equal(tables[0], table) for table in tables):
        raise UserError(
            f"{folder}: {listed(present)} differ, but {_CONFIG} says that they are one (tie_word_embeddings); "
            "set what belongs to the weights."
        )
    if tables:
        tensors[kept] = tables[0]


def _check_positions(folder: Path, name: str, table: np.ndarray, d_model: int) -> None:
    fits = table.ndim == 2 and table.shape[1] == d_model
    if not fits or not np.allclose(table, sinusoids(len(table), d_model), rtol=0, atol=_POSITION_TOLERANCE):
        raise UserError(f"{folder}: {name} does not hold sinusoids, which MarianMT has; name another model.")


def export_marian(model: str | Path | Seq2SeqModel[Any], out: str | Path, *, architecture: str = "marian") -> None:
    """Write an encoder-decoder model as a folder for `from_pretrained` of transformers; its README.md shows how.

    Args:
        model: a model folder, or the object that `load` returns for one.
        out: the folder to write; it must not exist.
        architecture: "marian" for post-norm models, the paper's; "pegasus" for pre-norm ones.

    Raises:
        UserError: if the folder cannot be read, the model does not fit the architecture, or `out` cannot be written.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(f"The architecture is {architecture!r}, but must be one of {', '.join(ARCHITECTURES)}.")
    with new_folder(out) as folder:
        loaded = load(model) if isinstance(model, str | os.PathLike) else model
        if not isinstance(loaded, Seq2SeqModel):
            raise UserError(
                f"{model} is not an encoder-decoder model for text, which {ARCHITECTURES[architecture]} is; name one."
            )
        _write(loaded, folder, architecture)


def _write(model: Seq2SeqModel[Any], folder: Path, architecture: str) -> None:
    config, settings = model.model_config, model.settings
    _check(config, architecture)
    source, target = sides_of(model.tokenizer)
    tensors = to_marian(model.params, config, source.numbering, target.numbering)
    tensors.setdefault(BIAS, np.zeros((1, config.target_vocab_size), np.float32))
    if config.tie_embeddings == "inputs":
        # One table a side, as transformers 5 reads them where the output has its own; 4 reads Pegasus' shared one.
        tensors[ENCODER] = tensors[DECODER]
        if architecture == "pegasus":
            tensors[SHARED] = tensors[DECODER]
    # The last token of an output is never read.
    max_positions = max(settings.max_source_length, max_length_of(settings) - 1)
    if architecture == "pegasus":
        # Its class would compute them, but warn that they are missing.
        tensors |= dict.fromkeys(POSITIONS, sinusoids(max_positions, config.d_model).astype(np.float32))
    generation = generation_json_of(settings, target.special_tokens, target.numbering)
    special_tokens = {name: value for name, value in generation.items() if name.endswith("token_id")}
    write_json(folder / _CONFIG, config_json_of(config, architecture, max_positions=max_positions) | special_tokens)
    write_json(folder / _GENERATION, generation)
    (folder / WEIGHTS_FILE).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    write_tokenizers(folder, source, target, max_length=settings.max_source_length, languages=model.languages)
    (folder / "README.md").write_text(_readme(model, architecture), encoding="utf-8")


def _check(config: ModelConfig, architecture: str) -> None:
    name = ARCHITECTURES[architecture]
    if config.norm_first and architecture == "marian":
        raise UserError(f"The model is pre-norm, but {name} is post-norm; export with --to pegasus.")
    if not config.norm_first and architecture == "pegasus":
        raise UserError(f"The model is post-norm, but {name} is pre-norm; export with --to marian.")
    if config.final_norm and not config.norm_first:
        raise UserError(
            f"The model's stacks end with a norm (final_norm), but those of {name} do not; export to another system."
        )
    if config.positions != "sinusoidal":
        raise UserError(
            f"The model's positions are {config.positions}, but {name} has sinusoids; export to another system."
        )
    if architecture == "pegasus" and not config.one_vocabulary:
        raise UserError(
            f"The model's source and target have separate embeddings, but those of {name} share one table; train with "
            "config.model.tie_embeddings=all or inputs, or export to another system."
        )


def _readme(model: Seq2SeqModel[Any], architecture: str) -> str:
    settings, normalization = model.settings, model.normalization
    decoding = settings.decoding
    chosen = f"texts[start : start + {decoding.batch_size}]"
    batch = chosen if normalization == "text" else f"[{normalization} for text in {chosen}]"
    # generation_config.json has no field for a limit that depends on the source.
    lines = imports_of(normalization)
    imports = "".join(f"{line}\n" for line in lines)
    packages = "transformers torch sentencepiece" + packages_of(lines)
    length = f'batch["input_ids"].shape[1] + {decoding.max_extra_tokens}'
    limit = "" if decoding.max_length else f", max_length=None, max_new_tokens={length}"
    if model.not_exported:
        search = model.not_exported
    elif decoding.conventions == "transformers":
        search = "`generate` finds the outputs of transformer-jax."
    else:
        search = (
            "`generate` ranks outputs by log-probability / length**length_penalty and stops by an estimate.\n"
            'transformer-jax searches the same way with `conventions="transformers"`.'
        )
    if not decoding.max_length:
        search += f"\n{ONE_LIMIT}"
    return f"""# {settings.title}

Written by transformer-jax for Hugging Face transformers.

## Use

Needs `pip install {packages}`.

```python
{imports}from transformers import MarianTokenizer, {ARCHITECTURES[architecture]}

folder = "{FOLDER}"
tokenizer = MarianTokenizer.from_pretrained(folder)
model = {ARCHITECTURES[architecture]}.from_pretrained(folder).eval()


def translate(texts):
    outputs = []
    for start in range(0, len(texts), {decoding.batch_size}):
        batch = tokenizer({batch}, return_tensors="pt", padding=True)
        found = model.generate(**batch{limit})
        outputs += tokenizer.batch_decode(found, skip_special_tokens=True)
    return outputs
```

{search}

## Limits

{settings.limits}
"""
