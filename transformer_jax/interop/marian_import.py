"""MarianMT models in: a folder of Hugging Face transformers becomes a model folder of this package."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.data.readers import encodable
from transformer_jax.data.tokenizers import TokenizerPair
from transformer_jax.interop.marian_config import check_special_tokens, model_config_of, settings_of
from transformer_jax.interop.marian_layout import (
    BIAS,
    DECODER,
    ENCODER,
    OUTPUT,
    POSITIONS,
    SHARED,
    from_marian,
    marian_shapes,
    sinusoids,
)
from transformer_jax.interop.marian_vocabulary import TOKENIZER_CONFIG, numbering_of, read_tokenizers
from transformer_jax.interop.reading import check_tensors, listed, read_json, read_weights, unlike, whole
from transformer_jax.nn import ModelConfig
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import new_folder
from transformer_jax.tasks.model_folder import save

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_START = "decoder_start_token_id"
_POSITION_TOLERANCE = 5e-3
"""Half of the last place of bfloat16 below 1: folders may hold rounded sinusoids."""
_LANGUAGE = r"[\w.@+ -]{0,256}"
"""It becomes part of the titles of READMEs, where a stranger's text must not go on."""

Tensors = dict[str, np.ndarray]


def import_marian(source: str | Path, out: str | Path) -> None:
    """Make a model folder of a MarianMT folder, such as those of the OPUS-MT models.

    What it translates, token for token, is what `MarianMTModel.generate` gives with the folder's own settings.

    Args:
        source: a folder with config.json, model.safetensors (or its parts and their index), source.spm, target.spm and
            vocab.json; generation_config.json, tokenizer_config.json and target_vocab.json where they are there.
        out: the folder to write; it must not exist.

    Raises:
        UserError: if a file is missing, damaged, a link or a pickle; if the model is none that this package can be,
            naming the field or every tensor; if `out` exists or cannot be written.
    """
    folder = Path(source)
    if not os.path.isdir(folder):  # takes any name, unlike folder.is_dir
        raise UserError(f"{source} is no folder; name a MarianMT folder, with config.json and model.safetensors.")
    path = folder / _CONFIG
    config = read_json(folder, _CONFIG)
    model = model_config_of(path, config)
    max_positions = whole(path, config, "max_position_embeddings", 1024, smallest=2)
    tensors = _checked(folder, read_weights(folder), model, config)

    # What `generate` uses is in the second file, where there is one.
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
            task="translation",
            model_config=model,
            params=params,
            tokenizer_files=TokenizerPair(source_side, target_side, joint=False).files(),
            settings=settings,
            scores={},
            origin={"imported from": f"a MarianMT model, {encodable(folder.resolve().name)}"},
        )


def _checked(folder: Path, tensors: Tensors, model: ModelConfig, config: dict[str, Any]) -> Tensors:
    """The tensors that the model needs, one a table; only then are the sizes in config.json to be trusted."""
    layers = model.num_encoder_layers + model.num_decoder_layers
    if layers > len(tensors):  # lest a mere number keep us busy for ever
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
        # transformers 4 stores the shared table; 5 stores and reads one a side beside it, which need not be equal.
        shared = tensors.pop(SHARED)
        for name in (ENCODER, DECODER):
            tensors.setdefault(name, shared)
    tensors.setdefault(BIAS, np.zeros((1, model.target_vocab_size), np.float32))
    check_tensors(folder, tensors, marian_shapes(model))
    return tensors


def _merge(folder: Path, tensors: Tensors, kept: str, others: tuple[str, ...]) -> None:
    """Leave one of several names of a table that the config says is one."""
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
        raise UserError(f"{folder}: {name} holds no sinusoids, which MarianMT has; name another model.")
