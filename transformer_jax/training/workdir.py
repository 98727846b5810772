"""The work folder of a run, apart from checkpoints and logs: its config, tokenizer, data and what it started from."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from transformer_jax.config import Config, build
from transformer_jax.data.pipeline import digest
from transformer_jax.nn import ModelConfig, Seq2Seq, Transformer
from transformer_jax.nn.losses import Params
from transformer_jax.system import UserError, distributed, package_version
from transformer_jax.system.files import AnyPath, os_errors, read_file, read_json, replace_folder, write_atomically
from transformer_jax.system.ownership import Ownership
from transformer_jax.task_groups import DATA_FILES, data_paths, file_fields, upgraded
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.model_folder import load, task_of
from transformer_jax.tasks.registry import checked_settings, make_task, registered, registered_names
from transformer_jax.training.step import UNBOUNDED_SCHEDULES, all_finite

ORIGIN_FILE = "init_from.json"
IDENTITY_FILE = "identity.json"
IDENTITY_VERSION = 1
FINISHED_FILE = "finished.json"
"""Of a run that has ended, not just run out of time: its config and its outcome."""

MAY_CHANGE = (
    *(f"training.{name}" for name in ("num_samples", "log_every", "eval_every", "checkpoint_every", "patience")),
    *(f"training.{name}" for name in ("max_minutes", "keep_checkpoints", "nonfinite", "trackers", "log_norms")),
    "data.manual_dir",
    "data.data_dir",
    "decoding.",
    "mesh.",
)
"""Fields, and groups of fields, that may change when a run is resumed: they do not affect what a step learns."""

OF_THE_RUN = (
    "dropout_rate",
    "attention_dropout_rate",
    "attention_implementation",
    "dtype",
    "scan_layers",
    "remat",
)
"""Fields of `config.model` that a run sets itself, whatever model it starts from."""
OUTSIDE_STACKS = ("positions", "max_positions", "tie_embeddings", "output_bias", "scale_embeddings")
"""Further fields it sets if it starts from stacks without a vocabulary, which they do not concern."""

_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Origin:
    """What a run starts from: drawn parameters, or a model folder (`config.init_from`)."""

    model: ModelConfig
    """Sizes of the model, vocabularies excluded."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the model folder. The run keeps those that its task does not set."""
    tokenizer_files: dict[str, bytes] | None = None
    """Files of the tokenizer, or None if one is to be trained."""
    params: Params = field(default_factory=dict)
    """Those of the parameters that are not drawn, in host memory."""

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs of it, beside the tokenizer."""
        return {"model": dataclasses.asdict(self.model), "settings": self.settings}


def read_origin(config: Config) -> Origin:
    """The origin that `config` names.

    Raises:
        UserError: if the model folder can't be read, or its model does not fit the task.
    """
    if not config.init_from:
        return Origin(config.model)
    task = task_of(config.init_from)
    is_stacks = _model_type(task) is Transformer
    if task != config.task and not (is_stacks and _model_type(config.task) is Seq2Seq):
        raise UserError(
            f"config.init_from names a model of task {task!r}, but config.task is {config.task!r}; "
            "name a model of the same task."
        )
    loaded = load(config.init_from)
    if not all_finite(loaded.params):
        raise UserError(
            f"{config.init_from} (config.init_from) has a parameter that is not finite; name another model."
        )
    kept = OF_THE_RUN + (OUTSIDE_STACKS if is_stacks else ())
    return Origin(
        model=dataclasses.replace(loaded.model_config, **{name: getattr(config.model, name) for name in kept}),
        settings=dataclasses.asdict(loaded.settings),
        tokenizer_files=None if loaded.tokenizer is None else loaded.tokenizer.files(),
        params=jax.device_get(loaded.params),
    )


def params_of_origin(config: Config, origin: Origin) -> Params:
    """Parameters for a run that has begun but lost its checkpoints, read again from the model folder.

    Raises:
        UserError: if the folder can't be read, or holds another model by now.
    """
    now = read_origin(config)
    if now.model != origin.model or now.tokenizer_files not in (None, origin.tokenizer_files):
        raise UserError(
            f"config.init_from: {config.init_from} holds another model than the one that this run started from; "
            "put that back, or choose another --workdir."
        )
    return now.params


def task_from(config: Config, origin: Origin) -> Task:
    """The task of `config`, with the sizes, tokenizer and settings of `origin`.

    Raises:
        UserError: if the data can't be read, or its classes are not those of the model.
    """
    task = make_task(dataclasses.replace(config, model=origin.model), origin.tokenizer_files)
    classes, known = (tuple(settings.get("classes", ())) for settings in (task.settings, origin.settings))
    if origin.settings and classes != known:
        raise UserError(
            f"config.init_from names a model of the classes {', '.join(known)}, but the data has "
            f"{', '.join(classes)}; name a model of those, in that order."
        )
    task.settings = origin.settings | task.settings
    return task


def _model_type(task: str) -> Any:
    return registered(task).model.model_type if task in registered_names() else None


def find_origin(config: Config, workdir: AnyPath) -> Origin:
    """The origin of the run in `workdir`; writes nothing. A run that has begun does not read `config.init_from` again.

    Raises:
        UserError: if the folder holds a run of another config, or `config.init_from` does not name a model for it.
    """
    if not has_begun(workdir):
        return read_origin(config)
    identity = _read_identity(workdir)  # first: of a later release, everything else may differ too
    before = upgraded(_read_json(workdir / "config.json"))
    if not isinstance(before, dict):
        raise UserError(f"{workdir / 'config.json'} is not the config of a run; choose another --workdir.")
    default = Config(task=config.task).to_dict()
    is_compared = identity is not None and None not in (identity[part]["sha256"] for part in DATA_FILES)
    may_change = [*MAY_CHANGE, *(sum(DATA_FILES.values(), file_fields()) if is_compared else ())]
    if config.optim.schedule in UNBOUNDED_SCHEDULES:
        may_change.append("training.num_steps")
    # The task first: without it, groups of fields differ.
    differences = _differences(before, config.to_dict(), default)
    for name, value, now in sorted(differences, key=lambda difference: difference[0] != "task"):
        is_shorter = name == "training.num_steps" and isinstance(value, int) and value > now
        if is_shorter or not name.startswith(tuple(may_change)):
            bounded = config.optim.schedule not in UNBOUNDED_SCHEDULES and name == "training.num_steps"
            why = f", on which its {config.optim.schedule} schedule depends" if bounded else ""
            start = f", with --config.init_from={workdir / 'model'} to start from its model" if bounded else ""
            raise UserError(
                f"{workdir} holds a run with config.{name}={value!r}, not {now!r}{why}; "
                f"choose another --workdir{start}, or delete that one."
            )
    tokenizer_files = _read_tokenizer(workdir, {} if identity is None else identity["tokenizer"])
    if not config.init_from:
        return Origin(config.model, tokenizer_files=tokenizer_files)
    path = workdir / ORIGIN_FILE
    return _stored_origin(config, _read_json(path), tokenizer_files, path)


def _stored_origin(config: Config, values: Any, tokenizer_files: dict[str, bytes], path: AnyPath) -> Origin:
    """Inverse of `Origin.to_json`, without parameters."""
    if not isinstance(values, dict) or set(values) != {"model", "settings"}:
        raise UserError(f"{path} does not say what the run started from; choose another --workdir.")
    model: ModelConfig = build(ModelConfig, values["model"], f"{path}: model")
    settings = values["settings"]
    if settings and config.task in registered_names():
        settings = dataclasses.asdict(checked_settings(config.task, settings, f"{path}: settings"))
    return Origin(model, settings, tokenizer_files)


def _read_tokenizer(workdir: AnyPath, checksums: Mapping[str, str]) -> dict[str, bytes]:
    """The files of the run's tokenizer, compared with their SHA-256; other files in the folder are ignored."""
    folder = workdir / "tokenizer"
    try:
        with os_errors(workdir):
            files = {
                file.name: read_file(file)
                for file in sorted(folder.iterdir())
                if file.is_file() and (not checksums or file.name in checksums)
            }
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); choose another --workdir.") from error
    for name, checksum in checksums.items():
        if name not in files or hashlib.sha256(files[name]).hexdigest() != checksum:
            state = "damaged or of another vocabulary" if name in files else "missing"
            raise UserError(f"{folder / name} is {state}; put back the one of this run, or choose another --workdir.")
    return files


def identity_of(task: Task) -> dict[str, Any]:
    """What a run must find again when it resumes, beside its tokenizer: the classes and the data of its task."""
    return {
        "format_version": IDENTITY_VERSION,
        "package_version": package_version(),
        "classes": list(task.settings.get("classes", ())),
        **{
            part: {"records": len(records), "sha256": digest(records)}
            for part, records in (("training", task.train), ("validation", task.validation))
        },
    }


def check_identity(workdir: AnyPath, config: Config, identity: Mapping[str, Any]) -> None:
    """Refuse to resume the run in `workdir`, if there is one, with other classes or on other data.

    Runs of release 0.1.0, and tasks whose records are not plain data, have nothing to compare.

    Raises:
        UserError: naming what differs.
    """
    before = _read_identity(workdir) if has_begun(workdir) else None
    if before is None:
        return
    difference = _other_classes(before["classes"], identity["classes"])
    for part in DATA_FILES:
        (count, checksum), (count_now, checksum_now) = (
            (values[part]["records"], values[part]["sha256"]) for values in (before, identity)
        )
        if not difference and count != count_now:
            difference = f"{_named_data(config, part)} now has {count_now:,} records instead of {count:,}"
        if not difference and None not in (checksum, checksum_now) and checksum != checksum_now:
            difference = f"the {count:,} records of {_named_data(config, part)} are others now"
    if difference:
        raise UserError(
            f"{workdir} holds a run on other data: {difference}; put the data back, or choose another --workdir."
        )


def _other_classes(before: list[str], now: list[str]) -> str:
    """How the classes differ; empty if they do not."""
    gone, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
    if before == now:
        return ""
    if len(gone) == len(new) == 1:
        return f"the class {gone[0]!r} is now {new[0]!r}"
    if not gone and not new:
        return f"the order of the classes is now {_listed(now)}, not {_listed(before)}"
    changes = ((gone, "no longer there"), (new, "new"))
    return " and ".join(f"the classes {_listed(names)} are {what}" for names, what in changes if names)


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return ", ".join(map(repr, names[:_NAMES_SHOWN])) + more


def _named_data(config: Config, part: str) -> str:
    """A part of the data, with the fields that name it: files, or a set and its folder."""
    shown = "".join(f", {field.removeprefix('data.')}={name}" for field, name in data_paths(config, part).items())
    return f"the {part} data (config.data.name={config.data.name}{shown})"


def _read_identity(workdir: AnyPath) -> Any:
    """The stored identity of the run in `workdir`; None for runs of release 0.1.0."""
    path = workdir / IDENTITY_FILE
    with _usable(workdir):
        if not path.exists():
            return None
    values = _read_json(path)
    version = values.get("format_version") if isinstance(values, dict) else None
    if type(version) is int and version > IDENTITY_VERSION:
        raise UserError(
            f"{path} has format_version {version}, but this release reads {IDENTITY_VERSION}; resume the run with the "
            f"release that wrote it ({values.get('package_version')}), or choose another --workdir."
        )
    parts: list[Any] = [values.get(part) for part in DATA_FILES] if isinstance(values, dict) else []
    if (
        version != IDENTITY_VERSION
        or not isinstance(values.get("classes"), list)
        or not isinstance(values.get("tokenizer"), dict)
        or not all(isinstance(part, dict) and {"records", "sha256"} <= part.keys() for part in parts)
        or not all(type(part["records"]) is int for part in parts)
    ):
        raise UserError(f"{path} is damaged; delete it if the data is the same as before, or choose another --workdir.")
    return values


def claim(
    workdir: AnyPath, config: Config, task: Task, origin: Origin, identity: Mapping[str, Any] | None = None
) -> None:
    """Make `workdir` the folder of a run: write its config and, unless it has begun, its tokenizer and origin.

    Args:
        workdir: the folder.
        config: the experiment.
        task: its task, for the tokenizer.
        origin: what the run starts from.
        identity: as `identity_of` returns it; None: no resumed run is compared with this one.

    Raises:
        UserError: if the folder can't be written, or holds something other than a run.
    """
    path = workdir / "config.json"
    with _usable(workdir):
        values = _read_json(path) if path.exists() else None
        if values is not None and not (isinstance(values, dict) and "training" in values):
            raise UserError(f"{workdir} holds a config.json that is not of a run; choose another --workdir.")
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / FINISHED_FILE).unlink(missing_ok=True)
        tokenizer_files = origin.tokenizer_files
        has_identity = (workdir / IDENTITY_FILE).exists()
        if not has_begun(workdir):
            tokenizer_files, has_identity = task.tokenizer_files, False
            replace_folder(workdir / "tokenizer", task.tokenizer_files)
            (workdir / ORIGIN_FILE).unlink(missing_ok=True)
            if config.init_from:
                write_atomically(workdir / ORIGIN_FILE, (json.dumps(origin.to_json(), indent=2) + "\n").encode())
        if identity is not None and not has_identity:
            checksums = {name: hashlib.sha256(file).hexdigest() for name, file in (tokenizer_files or {}).items()}
            content = json.dumps({**identity, "tokenizer": checksums}, indent=2) + "\n"
            write_atomically(workdir / IDENTITY_FILE, content.encode())
        write_atomically(path, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


@contextlib.contextmanager
def owned(workdir: AnyPath) -> Iterator[Ownership]:
    """A context that owns `workdir`, on the first process; on the others nothing is owned.

    Raises:
        UserError: if another run owns the folder, or it can't be used.
    """
    owner = Ownership(workdir)
    try:
        if distributed.is_main():
            with _usable(workdir):
                owner.acquire()
        yield owner
    finally:
        owner.release()


def has_begun(workdir: AnyPath) -> bool:
    """Whether there is a checkpoint or a model; what a run leaves before that may be overwritten.

    Raises:
        UserError: if the folder can't be read.
    """
    with _usable(workdir):
        if (workdir / "model").is_dir():  # `exists` is False where remote storage fails
            return True
        try:
            return any(entry.name[0].isdecimal() for entry in (workdir / "checkpoints").iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return False


@contextlib.contextmanager
def _usable(workdir: AnyPath) -> Iterator[None]:
    """A context that turns an `OSError` into a `UserError` asking for another folder."""
    try:
        with os_errors(workdir):
            yield
    except OSError as error:
        raise UserError(f"{workdir} can't be used as --workdir ({error.strerror}); choose another.") from error


def _read_json(path: AnyPath) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}); choose another --workdir.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); choose another --workdir.") from error


def _differences(before: Any, now: Any, default: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(name, before, now) of each field that differs; fields that an older release lacked count as their defaults."""
    if isinstance(before, dict) and isinstance(now, dict):
        before = {**{name: default[name] for name in now if name in default}, **before}
        return [
            difference
            for name in sorted(set(before) | set(now))
            for difference in _differences(
                before.get(name), now.get(name), default.get(name), f"{path}.{name}" if path else name
            )
        ]
    before_json, now_json = (list(value) if isinstance(value, tuple) else value for value in (before, now))
    return [] if before_json == now_json else [(path, before, now)]
