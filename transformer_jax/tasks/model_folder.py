"""A trained model as one folder: written atomically, read without running code."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from transformer_jax.config import build
from transformer_jax.data.tokenizers import TokenizerPair, pair_from_files
from transformer_jax.nn import ModelConfig, abstract_params, unstack_layers
from transformer_jax.system import UserError, finite, package_version
from transformer_jax.system.files import (
    AnyPath,
    as_path,
    os_errors,
    parse_json,
    read_untrusted,
    replace_folder,
    resolved,
)
from transformer_jax.tasks.registry import checked_settings, registered, registered_names

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Release 0.1.0 wrote version 1, whose settings are upgraded."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_LARGEST_CONFIG = _LARGEST_HEADER = 16_000_000  # bytes; a hundred for each of 160,000 classes
_LARGEST_TOKENIZER = 64_000_000
_CONFIG_FIELDS = ("format_version", "package_version", "task", "model", "settings", "scores", "sha256")
_UNFIT_FOR_TITLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|```")
"""Characters that would let an untrusted title write more than a heading into READMEs."""

_AS_STORED: dict[str, Any] = {"attention_implementation": "xla", "scan_layers": False, "remat": "none"}
"""Options of the computation depend on the machine, so they are not stored."""


def save(
    path: str | AnyPath,
    *,
    task: str,
    model_config: ModelConfig,
    params: Any,
    tokenizer_files: Mapping[str, bytes],
    settings: Mapping[str, Any],
    scores: Mapping[str, object],
    origin: Mapping[str, object] | None = None,
) -> None:
    """Write a trained model, replacing the one already there once the new one is complete.

    Args:
        path: the folder to write.
        task: name of a registered task.
        model_config: sizes and options of the model, vocabulary sizes included.
        params: as `nn.split` returns them; stored with a set of tensors per layer.
        tokenizer_files: as `TokenizerPair.files` returns them; empty for a model without a vocabulary.
        settings: fields of the task's settings, such as `TranslatorSettings`.
        scores: on validation or test data, with their signatures, for `config.json` and the model card.
        origin: data and command that made the model, for the model card.

    Raises:
        UserError: if the task or a setting is unknown, or the path exists and is not a model folder.
    """
    folder = resolved(as_path(path))
    if not _may_be_replaced(folder):
        raise UserError(f"{path} exists and is not a model folder; name another, or remove it.")
    if task not in registered_names():
        raise UserError(f"The task is {task!r}, but must be one of {', '.join(registered_names())}.")
    checked = check_savable(task, model_config, settings, tokenizer_files)
    model_config = dataclasses.replace(model_config, **_AS_STORED)
    tensors = {
        ".".join(map(str, name)): np.ascontiguousarray(value, dtype=np.float32)
        for name, value in traverse_util.flatten_dict(unstack_layers(jax.device_get(params))).items()
    }
    num_parameters = sum(tensor.size for tensor in tensors.values())
    files = {
        **tokenizer_files,
        WEIGHTS_FILE: safetensors.numpy.save(tensors),
        CARD_FILE: _card(model_config, checked, num_parameters, {**(origin or {}), **scores}).encode(),
    }
    files[CONFIG_FILE] = _config_content(task, model_config, checked, scores, files)
    try:
        replace_folder(folder, files)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room, or name another folder.") from error


def check_savable(
    task: str, model_config: ModelConfig, settings: Mapping[str, Any], tokenizer_files: Mapping[str, bytes]
) -> Any:
    """The checked settings of a model to train or save; `UserError` names what `load` would not read again."""
    checked = checked_settings(task, dict(settings), "settings")
    for name, content in tokenizer_files.items():
        if len(content) > _LARGEST_TOKENIZER:
            raise UserError(
                f"{name} has {len(content):,} bytes, but a tokenizer's file may have {_LARGEST_TOKENIZER:,}; "
                "lower config.tokenizer.vocab_size."
            )
    model_config = dataclasses.replace(model_config, **_AS_STORED)
    content = _config_content(task, model_config, checked, {}, {**tokenizer_files, WEIGHTS_FILE: b""})
    if len(content) > _LARGEST_CONFIG:
        raise UserError(
            f"The settings of the model take {len(content):,} bytes, but {CONFIG_FILE} may have {_LARGEST_CONFIG:,}; "
            "use fewer classes, or shorter names."
        )
    _checked_config(content, CONFIG_FILE)
    return checked


def _config_content(
    task: str, model_config: ModelConfig, settings: Any, scores: Mapping[str, object], files: Mapping[str, bytes]
) -> bytes:
    """The content of `config.json`, with the checksums of the other files, and of itself without that value."""
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": package_version(),
        "task": task,
        "model": dataclasses.asdict(model_config),
        "settings": dataclasses.asdict(settings),
        "scores": finite(scores),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} | {CONFIG_FILE: ""},
    }
    content = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    start, value, end = content.rpartition(f'"{CONFIG_FILE}": "')
    return f"{start}{value}{hashlib.sha256(content.encode()).hexdigest()}{end}".encode()


def task_of(path: str | AnyPath) -> str:
    """The task of a model folder, without reading the model; errors are those of `read_config`."""
    return read_config(path).task


def read_config(path: str | AnyPath) -> "FolderConfig":
    """What the `config.json` of a model folder says, without reading the model.

    Raises:
        UserError: if it is not a model folder, or its `config.json` is damaged.
    """
    folder = folder_of(path)
    return _checked_config(read_untrusted(folder, CONFIG_FILE, _LARGEST_CONFIG), folder / CONFIG_FILE)


def load(path: str | AnyPath) -> Any:
    """Read a trained model, such as the `model` folder of a run.

    No code from the folder is run, and everything is checked before it is used.

    Returns:
        An object of the class registered for the model's task, such as a `Translator`.

    Raises:
        UserError: if a file is missing, damaged, of another version, or does not belong to the others.
    """
    folder = folder_of(path)
    config = read_config(folder)
    tokenizer = _read_tokenizer(folder, config)
    model = registered(config.task).model(config.model, _read_params(folder, config), tokenizer, config.settings)
    _check_unchanged(folder, config, CONFIG_FILE, CARD_FILE)
    return model


def is_intact(path: str | AnyPath) -> bool:
    """Whether a model folder has all its files, unchanged; starts no device."""
    try:
        config = read_config(folder := folder_of(path))
        _check_unchanged(folder, config, *config.sha256, limit=None)
        return True
    except UserError:
        return False


def _may_be_replaced(folder: AnyPath) -> bool:
    try:
        with os_errors(folder):
            if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
                return True
            values = parse_json((folder / CONFIG_FILE).read_bytes()) if (folder / CONFIG_FILE).is_file() else None
            return isinstance(values, dict) and "format_version" in values  # which a run does not have
    except ValueError:
        return False
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder.") from error


def folder_of(path: str | AnyPath) -> AnyPath:
    """The model folder that a path names, or that of the run that it names; a `UserError` if there is none."""
    folder = as_path(path)
    try:
        with os_errors(folder):
            if (folder / WEIGHTS_FILE).exists():
                return folder
            if (folder / "model" / CONFIG_FILE).is_file():
                return folder / "model"
            folder = folder.parent if folder.name == "model" and not folder.exists() else folder
            inside = sorted(folder.iterdir()) if folder.is_dir() else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a model folder.") from error
    if inside is None:
        raise UserError(f"{path} is not a folder; name a model folder, such as runs/numerals/model.")
    if folder / "checkpoints" in inside:
        raise UserError(f"{path} is a run that has not written its model yet; finish it by rerunning its command.")
    if nested := [each for each in inside if (each / "model" / CONFIG_FILE).is_file()]:
        raise UserError(f"{path} is not a model folder, but holds some; name one, such as {nested[0]}.")
    return folder


@dataclass(frozen=True)
class FolderConfig:
    """Checked content of `config.json`."""

    task: str
    model: ModelConfig
    settings: Any
    sha256: dict[str, str]
    """Checksums of the files; folders of earlier releases have none of `CONFIG_FILE` and `CARD_FILE`."""
    values: dict[str, Any]
    """All fields as they are in the file; `package_version` and `scores`, which few folders lack, are not checked."""


def _checked_config(content: bytes, path: str | AnyPath) -> FolderConfig:
    """The content of `config.json`; `path` names it in errors."""
    try:
        values = parse_json(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the model again from its origin.") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise UserError(
            f"{path} has no field format_version; it does not describe a model of this package; import it first "
            "(transformer-jax import), or name another folder."
        )
    if type(version := values["format_version"]) is not int or version not in READABLE_VERSIONS:
        raise UserError(
            f"{path} has format_version {version!r}, but this release reads 1 and 2; use the release that wrote it."
        )
    for name in sorted((set(values) ^ set(_CONFIG_FIELDS)) - {"scores"}):  # which few folders have
        if name in values:
            raise UserError(f"{path}: {name} is not a field; known here: {', '.join(_CONFIG_FIELDS)}.")
        raise UserError(f"{path} has no field {name}; copy the model again from its origin.")
    if values["task"] not in registered_names():
        raise UserError(
            f"{path}: task is {values['task']!r}, but must be one of {', '.join(registered_names())}, or one that the "
            "caller has registered (register_task)."
        )
    sizes = values["model"]
    if isinstance(sizes, dict):  # options of another machine may not go with those of this one
        sizes = sizes | {name: value for name, value in _AS_STORED.items() if name in sizes}
    model = dataclasses.replace(build(ModelConfig, sizes, f"{path}: model"), **_AS_STORED)
    settings = checked_settings(values["task"], values["settings"], f"{path}: settings")
    if _UNFIT_FOR_TITLE.search(settings.title):
        raise UserError(
            f"{path}: settings has a line break, control character or fence (```) in a name of the model's title; "
            "copy the model again from its origin."
        )
    sha256 = values["sha256"]
    has_tokenizer = model.source_vocab_size > 0
    if not isinstance(sha256, dict) or WEIGHTS_FILE not in sha256 or bool(_tokenizer_names(sha256)) != has_tokenizer:
        raise UserError(
            f"{path}: sha256 must name {WEIGHTS_FILE} and, if there is a vocabulary, the tokenizer's files."
        )
    for name in sha256:
        if name in ("", ".", "..") or Path(name).name != name or not name.isprintable():
            raise UserError(f"{path}: sha256 names {name!r}, but must name files of this folder.")
    return FolderConfig(values["task"], model, settings, sha256, values)


def _tokenizer_names(sha256: Mapping[str, str]) -> list[str]:
    return [name for name in sha256 if name not in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)]


def _check_unchanged(folder: AnyPath, config: FolderConfig, *names: str, limit: int | None = _LARGEST_CONFIG) -> None:
    """Compare files of at most `limit` bytes, such as `config.json`, with their checksums."""
    for name in names:
        if (checksum := config.sha256.get(name)) is None:
            continue
        content = read_untrusted(folder, name, limit)
        if name == CONFIG_FILE:
            content = f'"{name}": "'.encode().join(content.rsplit(f'"{name}": "{checksum}'.encode(), 1))
        if hashlib.sha256(content).hexdigest() != checksum:
            raise UserError(
                f"{folder / name} is damaged or was changed (its sha256 differs); copy it again from its origin, "
                f"or delete {CARD_FILE} and {CONFIG_FILE} from sha256 in {CONFIG_FILE} if you changed it yourself."
            )


def _read_tokenizer(folder: AnyPath, config: FolderConfig) -> TokenizerPair | None:
    try:
        files = {name: read_untrusted(folder, name, _LARGEST_TOKENIZER) for name in _tokenizer_names(config.sha256)}
    except UserError:
        _check_unchanged(folder, config, CONFIG_FILE)  # which may have damaged names
        raise
    for name in files:
        if hashlib.sha256(files[name]).hexdigest() != config.sha256[name]:
            _check_unchanged(folder, config, CONFIG_FILE)
            raise UserError(
                f"{folder / name} is another vocabulary than the model was trained with; copy the right one there."
            )
    if not files:
        return None
    pair = pair_from_files(files)
    for side in ("source", "target"):
        size, expected = getattr(pair, side).vocab_size, getattr(config.model, f"{side}_vocab_size")
        if expected and size != expected:
            raise UserError(
                f"{folder} has another vocabulary than the model was trained with: {size:,} {side} tokens instead of "
                f"{expected:,}; copy the right one to its place."
            )
    return pair


def _read_params(folder: AnyPath, config: FolderConfig) -> Any:
    path = folder / WEIGHTS_FILE
    described, start = _read_header(folder)
    decoder_layers = 0 if config.model.num_classes else config.model.num_decoder_layers
    layers = config.model.num_encoder_layers + decoder_layers
    if layers > len(described):  # a number alone must not make us build layers forever
        raise UserError(f"{path} has {len(described):,} tensors, too few for {layers:,} layers; copy the model again.")
    try:
        _, expected = abstract_params(registered(config.task).model.model_type, config.model)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: model describes a model that cannot be built ({error}).") from error
    flat = traverse_util.flatten_dict(expected)
    names = {".".join(map(str, key)): key for key in flat}
    for name in sorted(set(names) ^ set(described)):
        fault = "has no tensor" if name in names else "has the unknown tensor"
        raise UserError(f"{path} {fault} {name}; it does not belong to {CONFIG_FILE} beside it.")
    for name, key in names.items():
        dtype, shape = described[name]
        if dtype != "F32" or shape != flat[key].shape:
            raise UserError(f"{path}: {name} is {dtype} {shape}, but {CONFIG_FILE} says F32 {flat[key].shape}.")
    content = read_untrusted(folder, WEIGHTS_FILE, start + sum(4 * math.prod(leaf.shape) for leaf in flat.values()))
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); copy it again from its origin.") from error
    if hashlib.sha256(content).hexdigest() != config.sha256[WEIGHTS_FILE]:
        _check_unchanged(folder, config, CONFIG_FILE)
        raise UserError(f"{path} is not the file that {CONFIG_FILE} names (sha256 differs); copy it again.")
    return traverse_util.unflatten_dict({key: jax.device_put(tensors[name]) for name, key in names.items()})


def _read_header(folder: AnyPath) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """The dtype and shape of every tensor, and the offset of the data."""
    start = 8 + int.from_bytes(read_untrusted(folder, WEIGHTS_FILE, 8, truncate=True), "little")
    content = read_untrusted(folder, WEIGHTS_FILE, min(start, 8 + _LARGEST_HEADER), truncate=True)
    try:
        entries = parse_json(content[8:])
        entries.pop("__metadata__", None)
        return {name: (str(entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}, start
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is truncated or damaged in its header; copy it again.") from error


def _card(model_config: ModelConfig, settings: Any, num_parameters: int, facts: Mapping[str, object]) -> str:
    model = dataclasses.asdict(model_config)
    sizes = {
        "parameters": f"{num_parameters:,} (float32)",
        "layers": f"{model['num_encoder_layers']} + {0 if model['num_classes'] else model['num_decoder_layers']}",
        "d_model, d_ff, heads": f"{model['d_model']}, {model['d_ff']}, {model['num_heads']}",
    }
    if model["source_vocab_size"]:
        sizes["vocabulary"] = f"{model['source_vocab_size']:,} source, {model['target_vocab_size']:,} target tokens"
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in {**facts, **sizes}.items())
    return f"""# {settings.title}

A model folder of transformer-jax, version {package_version()}.

| | |
| --- | --- |
{rows}

## Use

```python
import transformer_jax

model = transformer_jax.load("path/of/this/folder")
```

## Limits

{settings.limits}
"""


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
