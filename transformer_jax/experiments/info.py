"""The command `info`: all that the folder of a run or of a model says about it, without loading parameters."""

import argparse
import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from typing import Any

from transformer_jax.experiments.compare import flat, in_columns, number
from transformer_jax.experiments.runs import RunRecord, is_run, read_run
from transformer_jax.system import UserError, finite, package_version
from transformer_jax.system.files import AnyPath, as_path, os_errors, read_file, read_json
from transformer_jax.system.runtime import show_error, stdout_bytes

_SIZES = ("num_encoder_layers", "num_decoder_layers", "d_model", "d_ff", "num_heads")
_MOST_LAYERS = 1000
"""Of a deeper model, which nobody trains, parameters are not counted: a damaged number must not make us count forever."""


def run_command(arguments: argparse.Namespace) -> None:
    """Run `transformer-jax info`.

    Raises:
        UserError: if the folder is neither a run nor a model folder.
    """
    found = describe(arguments.folder)
    if arguments.json:
        content = json.dumps(finite(found), ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    else:
        for problem in found["problems"]:
            show_error(f"transformer-jax: {problem}")
        content = as_text(found, shutil.get_terminal_size((80, 24)).columns)
    stdout_bytes(content.encode("utf-8", "backslashreplace"))


def describe(path: str | AnyPath) -> dict[str, Any]:
    """All about a run or a model folder, as JSON has it.

    Returns:
        `path`, `kind` ("run" or "model"), `state` and `task`, and the groups `progress` (of a run), `model`, `data`,
        `scores`, `config`, `settings`, `versions`, `files` (bytes by name) and `problems` (sentences).

    Raises:
        UserError: if the folder is neither, or the `config.json` of a model folder is damaged.
    """
    folder = as_path(path)
    found = _run(folder) if is_run(folder) else _model(folder)
    return {"path": str(path), **found, "files": _files(folder)}


def _model(folder: AnyPath) -> dict[str, Any]:
    from transformer_jax.tasks.model_folder import read_config

    config = read_config(folder)
    missing = [name for name in config.sha256 if not (folder / name).is_file()]
    sizes = dataclasses.asdict(config.model)
    return {
        "kind": "model",
        "state": "incomplete" if missing else "complete",
        "task": config.task,
        "model": {"parameters": _num_parameters(config.task, config.model), **sizes},
        "scores": config.values.get("scores", {}),
        "settings": dataclasses.asdict(config.settings),
        "versions": {
            "package_version": config.values["package_version"],
            "format_version": config.values["format_version"],
            "installed": package_version(),
        },
        "problems": [f"{folder / name} is missing; copy the model again from its origin." for name in missing],
    }


def _run(folder: AnyPath) -> dict[str, Any]:
    record = read_run(folder)
    summary = record.summary()
    problems = list(record.problems)
    identity = _object(folder / "identity.json")
    final = next((dict(line) for line in reversed(record.log) if line.get("kind") == "final"), {})
    evaluated = next((dict(line) for line in reversed(record.log) if line.get("kind") == "evaluation"), {})
    scores = final or dict(record.finished.get("scores", {})) or evaluated
    model: dict[str, Any] = {}
    versions: dict[str, Any] = {"installed": package_version()}
    if "package_version" in identity:
        versions = {"begun_with": identity["package_version"], **versions}
    if (folder / "model" / "config.json").exists():
        try:
            written = _model(folder / "model")
            model = {"path": str(folder / "model"), **written["model"]}
            versions |= {f"model_{name}": value for name, value in written["versions"].items() if name != "installed"}
            problems += written["problems"]
        except UserError as error:
            problems.append(str(error))
    if not model and record.config:
        model = _planned_model(record, identity)
    progress = dataclasses.asdict(summary)
    for name in ("path", "state", "task", "problems"):
        progress.pop(name)
    memory = record.curve("memory_gb", "train")[1]
    return {
        "kind": "run",
        "state": record.state,
        "task": record.task,
        "progress": progress | {"memory_gb": memory[-1] if memory else None, "checkpoints": list(record.checkpoints)},
        "model": model,
        "data": _data(record, identity),
        "scores": {name: value for name, value in scores.items() if name not in ("step", "kind")},
        "config": record.config,
        "versions": versions,
        "problems": problems,
    }


def _data(record: RunRecord, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a run: its name, where it comes from, and how many records and classes the run found."""
    data = record.config.get("data", {})
    shown = {name: value for name, value in data.items() if isinstance(data, dict)} if data else {}
    for part in ("training", "validation"):
        if isinstance(values := identity.get(part), dict) and "records" in values:
            shown[f"{part}_records"] = values["records"]
    if identity.get("classes"):
        shown["classes"] = identity["classes"]
    return shown
