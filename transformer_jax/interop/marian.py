"""MarianMT models in: a folder of Hugging Face transformers becomes a model folder of this package."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.bundle import save_bundle
from transformer_jax.data.tokenizers import TokenizerPair
from transformer_jax.errors import UserError
from transformer_jax.files import new_folder
from transformer_jax.interop.marian_config import model_config_of
from transformer_jax.interop.marian_generation import settings_of, token_id
from transformer_jax.interop.marian_layout import (
    BIAS,
    DECODER,
    ENCODER,
    OUTPUT,
    POSITIONS,
    SHARED,
    Numbering,
    from_marian,
    marian_shapes,
    sinusoids,
)
from transformer_jax.interop.marian_vocabulary import TOKENIZER_CONFIG, numbering_of, read_tokenizers
from transformer_jax.interop.reading import check_tensors, listed, read_json, read_weights
from transformer_jax.models import ModelConfig

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_POSITION_TOLERANCE = 5e-3
"""Half of the last place of bfloat16 below 1: folders may hold rounded sinusoids."""

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
    if not folder.is_dir():
        raise UserError(f"{source} is no folder; name a MarianMT folder, with config.json and model.safetensors.")
    path = folder / _CONFIG
    config = read_json(folder, _CONFIG)
    model = model_config_of(path, config)
    max_positions = config.get("max_position_embeddings", 1024)
    if type(max_positions) is not int or not 2 <= max_positions < 2**31:
        raise UserError(f"{path}: max_position_embeddings is {max_positions!r}, but must be at least 2; mend it.")

    tokenizer_config = read_json(folder, TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).exists() else {}
    start = token_id(path, config, "decoder_start_token_id", model.target_vocab_size)
    sizes = model.source_vocab_size, model.target_vocab_size
    source_side, target_side = read_tokenizers(folder, tokenizer_config, *sizes, start)
    numberings = source_numbering, target_numbering = numbering_of(source_side), numbering_of(target_side)
    _check_markers(path, config, numberings, target_numbering.there(target_side.markers.end))
    if model.one_vocabulary and source_numbering != target_numbering:
        raise UserError(f"{folder}: both sides share their embeddings, so {_CONFIG} must not have vocabularies apart.")

    has_settings = (folder / _GENERATION).exists()
    generation = read_json(folder, _GENERATION) if has_settings else config
    settings = settings_of(
        folder / _GENERATION if has_settings else path,
        generation,
        target_numbering,
        target_side.markers.end,
        max_positions,
    )
    for name, field in (("source_language", "source_lang"), ("target_language", "target_lang")):
        if isinstance(tokenizer_config.get(field), str):
            settings[name] = tokenizer_config[field]

    tensors, model = _checked(folder, read_weights(folder), model, config, numberings)
    params = from_marian(tensors, model, *numberings)
    with new_folder(out) as new:
        save_bundle(
            new,
            task="translation",
            model_config=model,
            params=params,
            tokenizer_files=TokenizerPair(source_side, target_side, joint=False).files(),
            settings=settings,
            scores={},
            origin={"origin": f"a MarianMT model, {folder.resolve().name}"},
        )


def _check_markers(path: Path, config: dict[str, Any], numberings: tuple[Numbering, Numbering], end: int) -> None:
    """The ids in config.json must be those of the vocabularies."""
    paddings = [numbering.padding for numbering in numberings]
    for name, ids in (("eos_token_id", [end]), ("pad_token_id", paddings)):
        if config.get(name, ids[0]) not in ids:
            raise UserError(
                f"{path}: {name} is {config[name]!r}, but {ids[0]} in the vocabulary; copy the one that belongs to it."
            )


def _checked(
    folder: Path,
    tensors: Tensors,
    model: ModelConfig,
    config: dict[str, Any],
    numberings: tuple[Numbering, Numbering],
) -> tuple[Tensors, ModelConfig]:
    """The tensors that the model needs, one a table, and which tables are one."""
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
    same_numbering = numberings[0] == numberings[1]
    if model.tie_embeddings == "none" and same_numbering and np.array_equal(tensors[ENCODER], tensors[DECODER]):
        del tensors[ENCODER]
        model = dataclasses.replace(model, tie_embeddings="inputs")
    return tensors, model


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
