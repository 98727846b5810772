"""Config groups of tasks, which `tasks.registry` adds and `config`, below the tasks, reads.

Also the fields that name data, and those that earlier releases had elsewhere.
"""

import importlib.metadata
import itertools
import os
import sys
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from operator import attrgetter
from typing import Any

from transformer_jax.system import UserError

ENTRY_POINTS = "transformer_jax.tasks"
"""Group of the entry points of installed packages; each names a module that calls `register_task`."""

DATA_FILES = {
    part: [f"data.{name}_{kind}" for kind in ("source", "target", "file")]
    for part, name in (("training", "train"), ("validation", "validation"))
}
"""Part of the data to the fields that name its files, which may be others with the same records."""

_groups: dict[str, type[Any]] = {}
_loaded: set[str] = set()


def add_group(task: str, group: type[Any] | None) -> None:
    """Make the frozen dataclass `group` the group `config.TASK`, or drop that of the task (None).

    A field that an earlier release kept in another group is listed in the class variable `MOVED`: its old path in the
    config, such as "optim.mask_rate", to its name here. Fields that name files of further data are listed in the class
    variable `FILES`: a run may resume with others, if the records are the same.
    """
    if group is None:
        _groups.pop(task, None)
    else:
        _groups[task] = group


def task_groups() -> dict[str, type[Any]]:
    """Name of a task to the class of its group, for each task that has one."""
    load_plugins()
    return _groups


def moved_fields() -> dict[str, list[str]]:
    """Path of each field that moved into a task's group to its paths now, such as "couplet.rules"."""
    moved: dict[str, list[str]] = {}
    for task, group in task_groups().items():
        for old, name in getattr(group, "MOVED", {}).items():
            moved.setdefault(old, []).append(f"{task}.{name}")
    return moved


def refuse_moved(values: Mapping[str, Any], where: str = "config") -> None:
    """Refuse fields that an earlier release had elsewhere.

    Raises:
        UserError: naming the field and its place now.
    """
    for old, now in moved_fields().items():
        group, _, name = old.partition(".")
        if isinstance(values.get(group), Mapping) and name in values[group]:
            moved = " or ".join(f"config.{path}" for path in now)
            raise UserError(f"{where}.{old} is now {moved}; set it there.")


def upgraded(values: Any) -> Any:
    """The stored config of a run, its fields moved to where this release has them.

    Release 0.1.0 kept fields of single tasks in shared groups. Anything that is not such a config is returned as it is.
    """
    if not isinstance(values, dict) or not all(isinstance(values.get(name, {}), dict) for name in ("data", "decoding")):
        return values
    stored, values = values, deepcopy(values)
    for old, now in moved_fields().items():
        group, _, name = old.partition(".")
        if not isinstance(values.get(group), dict) or name not in values[group]:
            continue
        value = values[group].pop(name)
        for path in now:
            task, _, new_name = path.partition(".")
            if task == values.get("task"):
                values.setdefault(task, {})[new_name] = value
    return values | {"decoding": upgraded_decoding(stored["decoding"])} if "decoding" in stored else values


def upgraded_decoding(stored: Any) -> Any:
    """The stored fields of a `DecodingConfig`, those of release 0.1.0 turned into today's.

    It kept the rules of couplets there, for every task, and `max_length` did not count the end of sentence.
    """
    if not isinstance(stored, dict) or "rules" not in stored:
        return stored
    fields = {name: value for name, value in stored.items() if name != "rules"}
    if type(fields.get("max_length")) is int and fields["max_length"] > 0:
        fields["max_length"] += 1
    return fields


def file_fields() -> list[str]:
    """Paths of the fields in tasks' groups that name files of data, such as "couplet.blocklist"."""
    return [f"{task}.{name}" for task, group in task_groups().items() for name in getattr(group, "FILES", ())]


def data_paths(config: Any, *parts: str) -> dict[str, str]:
    """Files and folders of data that a `Config` names, of these parts or of all, by the path of the field."""
    parts = parts or tuple(DATA_FILES)
    fields = ["data.manual_dir", *itertools.chain.from_iterable(DATA_FILES[part] for part in parts)]
    fields += file_fields() if "training" in parts else []
    own = [field for field in fields if field.startswith(("data.", f"{config.task}."))]
    return {field: name for field in own if (name := attrgetter(field)(config))}


def load_plugins() -> None:
    """Import the modules that installed packages name under `ENTRY_POINTS`, once.

    A module that cannot be imported is reported as a warning: its tasks are missing, all others work.
    """
    for point in _entry_points(tuple((folder, _modified(folder)) for folder in sys.path)):
        if point.value in _loaded:
            continue
        _loaded.add(point.value)  # first, as the module may ask for the registered tasks
        try:
            point.load()
        except Exception as error:  # it is another package's code
            warnings.warn(f"The tasks of {point.value} cannot be loaded ({error}); update that package.", stacklevel=2)


@lru_cache(maxsize=1)
def _entry_points(_folders: tuple[tuple[str, int], ...]) -> importlib.metadata.EntryPoints:
    # Reads the metadata of every installed package, which takes up to a tenth of a second.
    return importlib.metadata.entry_points(group=ENTRY_POINTS)


def _modified(folder: str) -> int:
    """When packages were last installed into this folder of `sys.path` or removed from it."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0
