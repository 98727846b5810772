"""A trained model as one folder: written atomically, read without running code."""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from transformer_jax.config import build
from transformer_jax.data.tokenizers import TokenizerPair, pair_from_files
from transformer_jax.nn import ModelConfig, abstract_params, unstack_layers
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath, as_path, os_errors, replace_folder, resolved
from transformer_jax.tasks.registry import registered, registered_names

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Release 0.1.0 wrote version 1, whose settings are upgraded."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"

_LARGEST_CONFIG = 1_000_000  # bytes
_LARGEST_TOKENIZER = 64_000_000
_CONFIG_FIELDS = ("format_version", "package_version", "task", "model", "settings", "sha256")
_UNFIT_FOR_TITLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]|```")
"""Characters that would let an untrusted title write more than a heading into READMEs."""

_MAY_BE_ZERO = ("source_vocab_size", "target_vocab_size", "num_classes")
"""Sizes that not every kind of model has; the model checks its own."""

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
        scores: on validation or test data, with their signatures, for the model card.
        origin: data and command that made the model, for the model card.

    Raises:
        UserError: if the task or a setting is unknown, or the path exists and is not a model folder.
    """
    folder = resolved(as_path(path))
    if not _may_be_replaced(folder):
        raise UserError(f"{path} exists and is not a model folder; name another, or remove it.")
    if task not in registered_names():
        raise UserError(f"The task is {task!r}, but must be one of {', '.join(registered_names())}.")
    checked = checked_settings(task, dict(settings), "settings")
    model_config = dataclasses.replace(model_config, **_AS_STORED)
    tensors = {
        ".".join(map(str, name)): np.ascontiguousarray(value, dtype=np.float32)
        for name, value in traverse_util.flatten_dict(unstack_layers(jax.device_get(params))).items()
    }
    files = {**tokenizer_files, WEIGHTS_FILE: safetensors.numpy.save(tensors)}
    config = {
        "format_version": FORMAT_VERSION,
        "package_version": package_version(),
        "task": task,
        "model": dataclasses.asdict(model_config),
        "settings": dataclasses.asdict(checked),
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[CONFIG_FILE] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    num_parameters = sum(tensor.size for tensor in tensors.values())
    files[CARD_FILE] = _card(config, checked, num_parameters, {**(origin or {}), **scores}).encode()
    try:
        replace_folder(folder, files)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room, or name another folder.") from error


def task_of(path: str | AnyPath) -> str:
    """The task of a model folder, without reading the model.

    Raises:
        UserError: if it is not one, or its `config.json` is damaged.
    """
    return _read_config(_folder(path)).task


def load(path: str | AnyPath) -> Any:
    """Read a trained model, such as the `model` folder of a run.

    No code from the folder is run, and everything is checked before it is used.

    Returns:
        An object of the class registered for the model's task, such as a `Translator`.

    Raises:
        UserError: if a file is missing, damaged, of another version, or does not belong to the others.
    """
    folder = _folder(path)
    config = _read_config(folder)
    tokenizer = _read_tokenizer(folder, config)
    params = _read_params(folder, config)
    return registered(config.task).model(config.model, params, tokenizer, config.settings)


def checked_settings(task: str, values: Any, where: str) -> Any:
    """Settings of a model, those of earlier releases upgraded, as an instance of the task's `settings_type`.

    Raises:
        UserError: naming the field after `where`, if it is unknown or of the wrong type.
    """
    settings_type = registered(task).model.settings_type
    upgrade = getattr(settings_type, "upgrade", None)
    if upgrade is not None and isinstance(values, dict):
        values = upgrade(values)
    return build(settings_type, values, where)


def _may_be_replaced(folder: AnyPath) -> bool:
    try:
        with os_errors(folder):
            if not folder.exists() or (folder / CONFIG_FILE).is_file():
                return True
            return folder.is_dir() and not any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder.") from error


def _folder(path: str | AnyPath) -> AnyPath:
    folder = as_path(path)
    try:
        with os_errors(folder):
            is_folder = folder.is_dir()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a model folder.") from error
    if not is_folder:
        raise UserError(f"{path} is not a folder; name a model folder, such as runs/numerals/model.")
    return folder


@dataclass(frozen=True)
class _FolderConfig:
    """Checked content of `config.json`."""

    task: str
    model: ModelConfig
    settings: Any
    sha256: dict[str, str]


def _read_config(folder: AnyPath) -> _FolderConfig:
    path = folder / CONFIG_FILE
    content = _read_file(path, _LARGEST_CONFIG)

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        values = json.loads(content.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy the model again from its origin.") from error
    if not isinstance(values, dict) or "format_version" not in values:
        raise UserError(
            f"{path} has no field format_version; it does not describe a model of this package; import it first "
            "(transformer-jax import), or name another folder."
        )
    if values["format_version"] not in READABLE_VERSIONS:
        raise UserError(
            f"{path} has format_version {values['format_version']!r}, but this release reads 1 and 2; "
            "use the release that wrote it."
        )
    for name in values:
        if name not in _CONFIG_FIELDS:
            raise UserError(f"{path}: {name} is not a field; known here: {', '.join(_CONFIG_FIELDS)}.")
    for name in _CONFIG_FIELDS:
        if name not in values:
            raise UserError(f"{path} has no field {name}; copy the model again from its origin.")
    if values["task"] not in registered_names():
        raise UserError(
            f"{path}: task is {values['task']!r}, but must be one of {', '.join(registered_names())}, or one that the "
            "caller has registered (register_task)."
        )
    model = build(ModelConfig, values["model"], f"{path}: model")
    model = dataclasses.replace(model, **_AS_STORED)
    for name, value in dataclasses.asdict(model).items():
        smallest = 0 if name in _MAY_BE_ZERO else 1
        if type(value) is int and not smallest <= value < 2**31:
            raise UserError(f"{path}: model.{name} is {value}, but must be a size of at least {smallest}.")
    settings = checked_settings(values["task"], values["settings"], f"{path}: settings")
    if _UNFIT_FOR_TITLE.search(settings.title):
        raise UserError(
            f"{path}: settings has a line break, control character or fence (```) in a name of the model's title; "
            "copy the model again from its origin."
        )
    sha256 = values["sha256"]
    has_tokenizer = model.source_vocab_size > 0
    if not isinstance(sha256, dict) or WEIGHTS_FILE not in sha256 or (len(sha256) > 1) != has_tokenizer:
        raise UserError(
            f"{path}: sha256 must name {WEIGHTS_FILE} and, if there is a vocabulary, the tokenizer's files."
        )
    for name in sha256:
        if Path(name).name != name or "\0" in name:
            raise UserError(f"{path}: sha256 names {name!r}, but must name files of this folder.")
    return _FolderConfig(values["task"], model, settings, sha256)


def _read_tokenizer(folder: AnyPath, config: _FolderConfig) -> TokenizerPair | None:
    names = [name for name in config.sha256 if name != WEIGHTS_FILE]
    files = {name: _read_file(folder / name, _LARGEST_TOKENIZER) for name in names}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != config.sha256[name]:
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


def _read_params(folder: AnyPath, config: _FolderConfig) -> Any:
    path = folder / WEIGHTS_FILE
    content = _read_file(path)
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); copy it again from its origin.") from error
    decoder_layers = 0 if config.model.num_classes else config.model.num_decoder_layers
    layers = config.model.num_encoder_layers + decoder_layers
    if layers > len(tensors):  # a number alone must not make us build layers forever
        raise UserError(f"{path} has {len(tensors):,} tensors, too few for {layers:,} layers; copy the model again.")
    try:
        _, expected = abstract_params(registered(config.task).model.model_type, config.model)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: model describes a model that cannot be built ({error}).") from error
    flat = traverse_util.flatten_dict(expected)
    names = {".".join(map(str, key)): key for key in flat}
    for name in sorted(set(names) ^ set(tensors)):
        fault = "has no tensor" if name in names else "has the unknown tensor"
        raise UserError(f"{path} {fault} {name}; it does not belong to {CONFIG_FILE} beside it.")
    for name, key in names.items():
        tensor = tensors[name]
        if tensor.shape != flat[key].shape or tensor.dtype != np.float32:
            raise UserError(
                f"{path}: {name} is {tensor.dtype} {tensor.shape}, but {CONFIG_FILE} says float32 {flat[key].shape}."
            )
    if hashlib.sha256(content).hexdigest() != config.sha256[WEIGHTS_FILE]:
        raise UserError(f"{path} is not the file that {CONFIG_FILE} names (sha256 differs); copy it again.")
    return traverse_util.unflatten_dict({key: jnp.asarray(tensors[name]) for name, key in names.items()})


def _read_file(path: AnyPath, limit: int | None = None) -> bytes:
    try:
        with os_errors(path):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file; copy the model again from its origin.")
            with path.open("rb") as stream:
                content: bytes = stream.read(-1 if limit is None else limit + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; copy the model again from its origin.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it a readable file.") from error
    if limit is not None and len(content) > limit:
        raise UserError(f"{path} is larger than {limit:,} bytes; copy the model again from its origin.")
    return content


def package_version() -> str:
    """The release that is installed, for what it writes."""
    try:
        return importlib.metadata.version("transformer-jax")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def _card(config: Mapping[str, Any], settings: Any, num_parameters: int, facts: Mapping[str, object]) -> str:
    model = config["model"]
    sizes = {
        "parameters": f"{num_parameters:,} (float32)",
        "layers": f"{model['num_encoder_layers']} + {0 if model['num_classes'] else model['num_decoder_layers']}",
        "d_model, d_ff, heads": f"{model['d_model']}, {model['d_ff']}, {model['num_heads']}",
    }
    if model["source_vocab_size"]:
        sizes["vocabulary"] = f"{model['source_vocab_size']:,} source, {model['target_vocab_size']:,} target tokens"
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in {**facts, **sizes}.items())
    return f"""# {settings.title}

A model folder of transformer-jax, version {config["package_version"]}.

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
