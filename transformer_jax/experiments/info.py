"""The command `info`: all that the folder of a run or of a model says, without its parameters."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from transformer_jax.experiments.runs import RunRecord, is_run, read_object, read_run
from transformer_jax.experiments.tables import rendered, rounded
from transformer_jax.system import UserError, flat_config, package_version
from transformer_jax.system.files import AnyPath, as_path, os_errors, read_file
from transformer_jax.system.ownership import OWNER_FILE
from transformer_jax.system.runtime import printable

_ABOUT_OWNER = ("host", "pid", "since")
_SIZES = (
    *("num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads"),
    *("source_vocab_size", "target_vocab_size", "num_classes"),
)
_NAMES_OF_DATA = ("train", "validation", "manual_dir", "data_dir", "source_language", "target_language")
"""Beginnings of the fields of `config.data` that say which data it is."""

_MOST_SHOWN = 8
"""Members of a list that are shown."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def describe(path: str | AnyPath) -> dict[str, Any]:
    """All about a run or a model folder, as JSON has it.

    Returns:
        `path`, `kind` ("run" or "model"), `state`, `task`, and groups of values: `progress` and `owner` (of a run, the
        latter while it is running), `data`, `model` (`parameters`: their number, and the fields of `ModelConfig`),
        `scores`, `config` or `settings`, `versions`, `files` (bytes by name, folders with all that is in them) and
        `problems` (a sentence for what can't be read).

    Raises:
        UserError: if the folder is neither or can't be read, or the `config.json` of a model folder is damaged.
    """
    folder = as_path(path)
    try:
        with os_errors(folder):
            names = {entry.name for entry in folder.iterdir()}
            if not is_run(folder) and not {"config.json", "model"} & names:
                raise UserError(
                    f"{path} is neither a run nor a model folder; transformer-jax runs {path} finds runs in it."
                )
            found = _run(read_run(folder)) if is_run(folder) else _model(folder)
            problems = found.pop("problems")
            return {"path": str(path), **found, "files": _files(folder), "problems": problems}
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); name a run or a model folder.") from error


def _model(folder: AnyPath) -> dict[str, Any]:
    from transformer_jax.tasks.model_folder import folder_of, read_config

    config, folder = read_config(folder), folder_of(folder)
    missing = [name for name in config.sha256 if not (folder / name).exists()]
    scores = config.values.get("scores")
    return {
        "kind": "model",
        "state": "incomplete" if missing else "complete",
        "task": config.task,
        "model": _described(config.task, config.model),
        "scores": scores if isinstance(scores, dict) else {},
        "settings": dataclasses.asdict(config.settings),
        "versions": {name: config.values[name] for name in ("package_version", "format_version")}
        | {"installed": package_version()},
        "problems": [f"{folder / name} is missing; copy the model again from its origin." for name in missing],
    }


def _run(record: RunRecord) -> dict[str, Any]:
    folder, summary, problems = record.path, record.summary(), list(record.problems)
    identity = read_object(folder / "identity.json", problems.append) or {}
    owner = (read_object(folder / OWNER_FILE, problems.append) or {}) if record.state == "running" else {}
    progress = dataclasses.asdict(summary)
    for name in ("path", "state", "task", "problems"):
        del progress[name]
    memory = record.curve("memory_gb", "train")[1]
    progress |= {"memory_gb": memory[-1] if memory else None, "checkpoints": list(record.checkpoints)}
    versions = {"package_version": identity.get("package_version"), "installed": package_version()}
    model: dict[str, Any] = {}
    try:
        if (folder / "model" / "config.json").exists():
            written = _model(folder / "model")
            model, problems = written["model"], [*problems, *written["problems"]]
            versions["of_model"] = written["versions"]["package_version"]
        elif record.config:
            model = _model_to_come(record, identity, problems.append)
    except UserError as error:
        problems.append(str(error))
    return {
        "kind": "run",
        "state": record.state,
        "task": record.task,
        "progress": progress,
        "owner": {name: owner[name] for name in _ABOUT_OWNER if name in owner},
        "data": _data(record, identity),
        "model": model,
        "scores": _scores(record),
        "config": dict(record.config),
        "versions": versions,
        "problems": problems,
    }


def _scores(record: RunRecord) -> dict[str, Any]:
    """Those of the written model or, before there is one, of the last evaluation."""
    lines = [line for kind in ("evaluation", "final") for line in record.log if line.get("kind") == kind]
    scores = lines[-1] if lines else record.finished.get("scores", {})
    return {name: value for name, value in scores.items() if name != "kind"}


def _data(record: RunRecord, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of the data, and what the run found there."""
    fields, classes = record.config.get("data"), identity.get("classes")
    fields = fields if isinstance(fields, dict) else {}
    data = {name: value for name, value in fields.items() if value and name.startswith(("name", *_NAMES_OF_DATA))}
    if isinstance(classes, list) and classes:
        data = {name: value for name, value in data.items() if not name.endswith("_language")} | {"classes": classes}
    for part in ("training", "validation"):
        values = identity.get(part)
        if isinstance(values, dict) and "records" in values:
            data[f"{part}_records"] = values["records"]
    return data


def _model_to_come(record: RunRecord, identity: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """The model of a run that has not written it, as far as config, origin, tokenizer and classes determine it.

    Raises:
        UserError: if the config or the tokenizer is damaged.
    """
    from transformer_jax.config import build, config_from_dict, upgraded
    from transformer_jax.data.tokenizers import pair_from_files
    from transformer_jax.nn import ModelConfig

    folder, classes = record.path, identity.get("classes")
    tokenizer = folder / "tokenizer"
    files = {file.name: read_file(file) for file in tokenizer.iterdir()} if tokenizer.is_dir() else {}
    if not files:
        return {}
    config = config_from_dict(upgraded(dict(record.config)), str(folder / "config.json"))
    origin = (read_object(folder / "init_from.json", report) or {}).get("model")
    model = build(ModelConfig, origin, f"{folder / 'init_from.json'}: model") if origin else config.model
    try:
        pair = pair_from_files(files)
    except UserError as error:
        raise UserError(
            f"{tokenizer} can't be read ({str(error).rstrip('.')}); the model's size is not known."
        ) from error
    sizes = {"source_vocab_size": pair.source.vocab_size, "target_vocab_size": pair.target.vocab_size}
    if isinstance(classes, list) and classes:
        sizes |= {"target_vocab_size": 0, "num_classes": len(classes)}
    return _described(config.task, dataclasses.replace(model, **sizes))


def _described(task: str, config: Any) -> dict[str, Any]:
    """The number of parameters of a model, counted without making any, and its `ModelConfig`."""
    import jax

    from transformer_jax.nn import abstract_params
    from transformer_jax.tasks.registry import registered

    try:
        _, params = abstract_params(registered(task).model.model_type, config)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    except (UserError, TypeError, ValueError, OverflowError):
        count = None
    return {"parameters": count, **dataclasses.asdict(config)}


def _files(folder: AnyPath) -> dict[str, int]:
    """Bytes of the files in a folder, by name; of folders, which end in /, those of all that is in them."""
    try:
        with os_errors(folder):
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError:
        return {}
    sizes: dict[str, int] = {}
    for entry in entries:
        try:
            with os_errors(entry):
                is_folder = entry.is_dir() and not (isinstance(entry, Path) and entry.is_symlink())
                status = None if is_folder else entry.stat()
        except OSError:  # a run has just deleted or renamed it
            continue
        if status is None:
            sizes[f"{entry.name}/"] = sum(_files(entry).values())
        else:
            sizes[entry.name] = status.st_size if isinstance(entry, Path) else status.length
    return sizes


# The terminal.


def as_text(found: Mapping[str, Any], width: int, *, is_terminal: bool = False) -> str:
    """What `describe` returns, for people: of the config and the model's options only what is not the default."""
    task = f" of the task {found['task']}" if found["task"] else ""
    parts: list[Any] = [Text(printable(f"a {found['kind']}{task}, {found['state']}"))]
    sections = {title: rows for title, rows in _sections(found).items() if rows}
    widest = max((len(name) for rows in sections.values() for name in rows), default=0)
    for title, rows in sections.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=2 + widest, no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(Text(printable(f"  {name}")), Text(printable(value)))
        parts.append(Group(Text(title, style="bold"), table))
    # The path stays in one line, to be copied.
    return f"{printable(found['path'])}\n{rendered(parts, width, is_terminal=is_terminal)}"


def _sections(found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Title to names and values."""
    from transformer_jax.config import Config, upgraded
    from transformer_jax.nn import ModelConfig

    progress, model = found.get("progress"), found["model"]
    options = dataclasses.asdict(ModelConfig())
    unused = {"num_decoder_layers"} if model.get("num_classes") else set()
    unused |= {name for name in _SIZES if model.get(name) == 0}
    changed = {name: value for name, value in model.items() if name in _SIZES or value != options.get(name)}
    changed = {name: value for name, value in changed.items() if name not in unused}
    config = {}
    if found.get("config"):
        defaults = flat_config(Config(task=str(found["task"])).to_dict())
        config = flat_config(upgraded(found["config"]))
        config = {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}
    return {
        "progress": _progress_rows(progress) if progress else {},
        "owner": {name: str(value) for name, value in found.get("owner", {}).items()},
        "data": _rows(found.get("data", {})),
        "model": _rows(changed),
        "scores": _rows(found["scores"]),
        "config, where it is not the default": _rows(config),
        "settings": _rows(flat_config(found.get("settings", {}))),
        "versions": _rows(found["versions"]),
        "files": {name: _size(size) for name, size in found["files"].items()},
    }


def _progress_rows(progress: Mapping[str, Any]) -> dict[str, str]:
    metric, speed, memory = progress["metric"], progress["tokens_per_second"], progress["memory_gb"]
    of_all = "" if progress["num_steps"] is None else f" of {progress['num_steps']:,}"
    best = f"{metric} {rounded(progress['best'])} at step {progress['best_step']:,}" if progress["best_step"] else None
    return _rows(
        {
            "step": f"{progress['step']:,}{of_all}",
            "best": best,
            "minutes": progress["minutes"],
            "tokens/s": None if speed is None else f"{speed:,.0f}",
            "memory": None if memory is None else f"{memory:.3g} GB",
            "checkpoints": progress["checkpoints"],
        }
    )


def _rows(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as text, unknown ones left out."""
    return {str(name): _text(value) for name, value in values.items() if value is not None and value != []}


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        more = f", ... ({len(value):,})" if len(value) > _MOST_SHOWN else ""
        return ", ".join(map(_text, value[:_MOST_SHOWN])) + more
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return rounded(value) if isinstance(value, float) else "''" if value == "" else str(value)


def _size(size: int) -> str:
    unit = next((unit for unit in _UNITS if size >= unit[0]), None)
    return f"{size} bytes" if unit is None else f"{size / unit[0]:,.1f} {unit[1]}"
