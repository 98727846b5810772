"""The configuration of an experiment: frozen dataclasses, and their conversion from ml_collections and JSON."""

import dataclasses
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import ml_collections

from transformer_jax.data.pipeline import BATCHINGS
from transformer_jax.data.sentencepiece_tokenizers import Normalization
from transformer_jax.data.tokenizers import KINDS
from transformer_jax.decoding.options import DecodingConfig
from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import MeshConfig
from transformer_jax.system import (
    Choice,
    FieldError,
    Fraction,
    NotNegative,
    Positive,
    Range,
    Seed,
    UserError,
    check_fields,
    known_names,
    shipped_configs,
)
from transformer_jax.system.files import as_path, read_json
from transformer_jax.task_groups import refuse_moved, task_groups, upgraded


@dataclass(frozen=True)
class DataConfig:
    """Source of the examples, and how they are batched."""

    name: str = "numerals"
    """An embedded set, "text" for your own files, or a TFDS set; docs/configuration.md lists them by task."""
    source_language: str = "de"
    target_language: str = "en"
    manual_dir: str = ""
    """Folder with the raw files of a set, for machines without a network."""
    data_dir: str = ""
    """Folder of prepared TFDS sets; default: TFDS's own."""
    train_split: str = "train"
    validation_split: str = "validation"
    """Empty: hold out `validation_percent` % of the training data."""
    validation_percent: Annotated[float, Range(above=0, below=100)] = 5.0
    """Records are chosen by a hash of their input, so equal inputs stay together."""
    train_source: str = ""
    """Files of `name="text"` for pairs: plain or gzip, aligned line by line."""
    train_target: str = ""
    validation_source: str = ""
    validation_target: str = ""
    train_file: str = ""
    """Files of `name="text"`, plain or gzip: TSV for pairs; CSV, TSV or JSON Lines for labelled texts."""
    validation_file: str = ""
    source_column: Positive = 1
    """Column of the source in a TSV file of pairs, from 1."""
    target_column: Positive = 2
    text_columns: tuple[str, ...] = ("text",)
    """Columns of the text in these files, joined by a space: names in the header (or JSON fields), or numbers from 1
    for CSV and TSV files without a header."""
    label_column: str = "label"
    """Column of the label, by name or number like `text_columns`."""
    lowercase: bool = False
    """Read and write lower-cased text; references keep their case."""
    max_length: Positive = 128
    """Largest number of tokens of a sentence, end of sentence included. Longer training pairs are left out and
    counted; longer texts to classify are truncated."""
    batching: Annotated[str, Choice(*BATCHINGS)] = "pack"
    """pack: several sentences per row, separated by segment masks; bucket: one per row, by length."""
    tokens_per_batch: Positive = 2048
    """Token slots of a batch, on each side."""
    row_length: Positive = 64
    """Token slots of a packed row, on each side (raised to `max_length` where that is larger)."""
    bucket_lengths: tuple[Positive, ...] = (8, 16, 24, 32, 48, 64, 96, 128)
    """Row lengths of `batching="bucket"`; one compilation each."""

    def __post_init__(self) -> None:
        check_fields(self, "config.data.{}".format)


@dataclass(frozen=True)
class TokenizerConfig:
    """Tokenization."""

    kind: Annotated[str, Choice(*KINDS)] = "bpe"
    """bpe or unigram (sentencepiece), word, char."""
    vocab_size: Annotated[int, Range(5)] = 8000
    """Largest number of tokens, the four special ones included."""
    joint: bool = True
    """One vocabulary for both sides."""
    source_normalization: Normalization = "nmt_nfkc"
    """How bpe and unigram normalize sources and texts to classify: a lossy rule of sentencepiece (nfkc, nmt_nfkc,
    nfkc_cf, nmt_nfkc_cf), or identity. Targets are kept as they are."""
    byte_fallback: bool = False
    """Spell characters that a bpe or unigram vocabulary lacks as bytes, which take 256 of its ids."""
    max_texts: NotNegative = 0
    """Largest number of texts or pairs to train it on, spread evenly over the training data; 0: the task's default."""

    def __post_init__(self) -> None:
        check_fields(self, "config.tokenizer.{}".format)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer (section 5.3) and its schedule."""

    name: Annotated[str, Choice("adam", "adamw", "lion", "sgd")] = "adam"
    """adam, adamw or another of `training.step.OPTIMIZERS`."""
    schedule: Annotated[str, Choice("noam", "rsqrt", "cosine", "linear", "constant")] = "noam"
    """noam (section 5.3), rsqrt, cosine, linear, constant."""
    lr: Annotated[float, Range(0)] = 1.0
    """noam: factor before the paper's formula; otherwise the peak learning rate."""
    warmup_steps: NotNegative = 4000
    beta1: Fraction = 0.9
    beta2: Fraction = 0.98
    epsilon: Annotated[float, Range(1e-30)] = 1e-9
    weight_decay: Annotated[float, Range(0)] = 0.0
    clip_norm: Annotated[float, Range(0)] = 0.0
    """Largest global norm of the gradient; 0: no clipping."""
    accumulate_steps: Positive = 1
    """Number of parts a batch is split into to save memory; the update stays the same."""
    label_smoothing: Fraction = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "config.optim.{}".format)


@dataclass(frozen=True)
class TrainingConfig:
    """Length of a run, checkpoints, averaging, logging."""

    num_steps: Positive = 100_000
    max_minutes: Annotated[float, Range(0)] = 0.0
    """Finish within this wall-clock time, model written; 0: no limit."""
    log_every: Positive = 50
    eval_every: Positive = 1000
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2
    average_last: Positive = 1
    """At the end, also try the mean of the parameters of the last N checkpoints (section 6.1)."""
    ema_decay: Fraction = 0.0
    """Above 0: evaluate and write an exponential moving average of the parameters instead."""
    patience: NotNegative = 0
    """Evaluations without a better validation score before stopping early; 0: never."""
    nonfinite: Annotated[str, Choice("stop", "skip")] = "stop"
    """What to do when a loss or gradient is NaN or infinite: stop, or skip the update."""
    metric: str = "bleu"
    """Validation score that selects the best checkpoint, such as bleu or exact_match."""
    num_samples: NotNegative = 3
    """Sample outputs shown at each evaluation."""
    trackers: tuple[Annotated[str, Choice("tensorboard", "wandb", "mlflow", "trackio")], ...] = ("tensorboard",)
    """What shows the values of the log as they come, see `training.trackers`."""
    log_norms: bool = False
    """Also log the norms of the parameters and the gradient of each layer, see `training.step.layer_norms`."""

    def __post_init__(self) -> None:
        check_fields(self, "config.training.{}".format)


@dataclass(frozen=True)
class Config:
    """One experiment, in groups of fields; a registered task may add a group of its own (`config.couplet.rules`)."""

    task: str = "translation"
    seed: Seed = 0
    init_from: str = ""
    """A model folder to initialize the parameters from, see `training.workdir.read_origin`; empty: draw them."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    groups: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Task groups by name; that of `task` is filled in with its defaults."""

    def __post_init__(self) -> None:
        check_fields(self, "config.{}".format)
        if self.task not in self.groups and self.task in task_groups():
            object.__setattr__(self, "groups", {**self.groups, self.task: task_groups()[self.task]()})

    def __getattr__(self, name: str) -> Any:
        """The group of a task: the given one, or its defaults."""
        given = self.__dict__.get("groups", {})
        if name.startswith("_") or name not in (known := given | task_groups()):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return given[name] if name in given else known[name]()

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts of all fields, with the group of `task` and no other; `config_from_dict` reads them back."""
        values = dataclasses.asdict(self)
        groups = values.pop("groups")
        return values | {name: group for name, group in groups.items() if name == self.task}


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default, to be changed by a file in `configs/` and on the command line.

    It has the groups of all registered tasks.
    """
    groups = {name: dataclasses.asdict(group()) for name, group in task_groups().items()}
    return ml_collections.ConfigDict(Config().to_dict() | groups)


def load_config_file(argument: str) -> ml_collections.ConfigDict:
    """A config with all its fields, to be changed on the command line.

    Args:
        argument: a shipped config (`NAME`) or a file (`FILE.py`), either with `:ARGUMENT` if its `get_config` takes
            one, or the `config.json` of a run. Fields that `get_config` does not set have their defaults.

    Raises:
        UserError: if there is no such file, or it gives no config.
    """
    if _is_json(argument):
        config = default_config()
        config.update(read_config(argument).to_dict())
        return config
    name, colon, choice = argument.partition(":")
    if colon and _is_json(name):
        raise UserError(f"{argument} names a choice, but the config of a run has none; drop {colon}{choice}.")
    path = config_file(name)
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"{path} has no function get_config; see docs/configuration.md.")
        found = get_config(choice) if colon else get_config()
    except UserError:
        raise
    except Exception as error:  # the file is the user's own code, in which anything may fail
        cause = str(error).strip().partition("\n")[0].strip("\"'")
        raise UserError(f"{argument} gives no config ({type(error).__name__}: {cause}); see its get_config.") from error
    if not isinstance(found, ml_collections.ConfigDict):
        raise UserError(f"get_config of {path} returns {type(found).__name__}, but must return a ConfigDict.")
    with found.unlocked(), found.ignore_type():
        _complete(found, default_config())
    return found


def _complete(config: ml_collections.ConfigDict, defaults: ml_collections.ConfigDict) -> None:
    """Add the defaults that `config` lacks, and make its numbers floats where these are."""
    for name, default in defaults.items():
        if name not in config:
            config[name] = default
        elif isinstance(default, ml_collections.ConfigDict) and isinstance(config[name], ml_collections.ConfigDict):
            _complete(config[name], default)
        elif isinstance(default, float) and type(config[name]) is int:
            config[name] = float(config[name])


def config_file(name: str) -> str:
    """The file of a config that is named on the command line."""
    shipped = shipped_configs()
    if name in shipped:
        return str(shipped[name])
    path = as_path(name)
    if Path(path).is_file():
        return str(path)
    if "/" in name or name.endswith(".py"):
        stem = Path(name).stem
        shorter = f"such as {stem}" if stem in shipped else f"such as {', '.join(shipped)}"
        raise UserError(f"{name} is not a file; name one, or a shipped config, {shorter}.")
    raise UserError(f"{name} is neither a shipped config nor a file; {known_names(name, shipped)}")


def _is_json(path: str) -> bool:
    return path.rstrip("/").lower().endswith(".json")


def read_config(argument: str) -> Config:
    """The config of a Python file, see `load_config_file`, or of a run's `config.json`.

    Raises:
        UserError: if there is no such file, or it is not a config.
    """
    if not _is_json(argument):
        return from_config_dict(load_config_file(argument))
    path = as_path(argument)
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{argument} is not the config of a run ({reason}); name the one in a work folder.") from error
    if isinstance(values, dict) and "format_version" in values:
        raise UserError(f"{argument} is the config of a model, not of a run; name the one in a work folder.")
    return config_from_dict(upgraded(values), argument)


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
    """Convert to the frozen dataclasses.

    Raises:
        UserError: naming the field, if it is unknown, of the wrong type, out of range, or in the group of another task.
    """
    return config_from_dict(config.to_dict(), "config")


def config_from_dict(values: Any, where: str) -> Config:
    """The config with these values, and defaults elsewhere; the inverse of `Config.to_dict`.

    Raises:
        UserError: naming the field after `where`, if it is unknown, of the wrong type, out of range, or in the group
            of another task.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, but must be a group of fields.")
    known = task_groups()
    shared = [field.name for field in dataclasses.fields(Config) if field.name != "groups"]
    for name in values:
        if name not in shared and name not in known:
            raise UserError(f"{where}.{name} is not a field; {known_names(name, [*shared, *known])}")
    refuse_moved(values, where)
    config: Config = build(Config, {name: values[name] for name in values if name in shared}, where)
    groups = {name: build(known[name], values[name], f"{where}.{name}") for name in values if name in known}
    for name, group in groups.items():
        for each in dataclasses.fields(group):
            if name != config.task and getattr(group, each.name) != getattr(known[name](), each.name):
                raise UserError(f"{where}.{name}.{each.name} means nothing for task {config.task!r}; drop it.")
    return dataclasses.replace(config, groups={name: group for name, group in groups.items() if name == config.task})


def build(cls: Any, values: Any, where: str) -> Any:
    """The dataclass `cls` with these values, and its defaults elsewhere; a field has the type of its default.

    Raises:
        UserError: naming the field after `where`, if it is unknown, of the wrong type or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, but must be a group of fields.")
    defaults = cls()
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise UserError(f"{where}.{name} is not a field; {known_names(name, known)}")
    checked = {name: _checked(getattr(defaults, name), value, f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**checked)
    except FieldError as error:
        raise error.named(lambda name: f"{where}.{name}") from None


def _checked(default: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(default):
        return build(type(default), value, where)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(_checked(default[0], item, where) for item in value) if default else tuple(value)
    if type(value) is not type(default):
        raise UserError(f"{where} is {value!r}, but must be of type {type(default).__name__}.")
    return value
