"""What an experiment is: frozen dataclasses, and the one crossing from ml_collections into them."""

import dataclasses
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_collections

from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import MeshConfig
from transformer_jax.system.errors import UserError
from transformer_jax.system.files import as_path, os_errors


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they become batches."""

    name: str = "numerals"
    """Embedded: numerals, headlines, antitheses. Your own files: text. By TFDS: multi30k or any of its translation
    sets; ag_news, ag_news_subset or any of its sets of labelled texts; couplet."""
    source_language: str = "de"
    target_language: str = "en"
    manual_dir: str = ""
    """Folder with a set's raw files, for machines without a network."""
    data_dir: str = ""
    """Where TFDS keeps prepared sets; empty: TFDS's own default."""
    train_split: str = "train"
    validation_split: str = "validation"
    """Empty: cut `validation_percent` % out of the training data (classification and couplets)."""
    validation_percent: float = 5.0
    """Chosen by a hash of what is read, so that equal texts stay together."""
    train_source: str = ""
    """Files of `name="text"`: plain or gzip, one sentence or couplet line a line, aligned line by line."""
    train_target: str = ""
    validation_source: str = ""
    validation_target: str = ""
    train_file: str = ""
    """Files of `name="text"` for classification: CSV, TSV or JSON lines, plain or gzip."""
    validation_file: str = ""
    extra_train: str = ""
    """Further training data: a file of labelled texts, or a folder of couplets."""
    blocklist: str = ""
    """A file of words, one a line: couplets that have one are left out."""
    lowercase: bool = False
    """Let the model read and write lower-cased text; references are scored as they are."""
    max_length: int = 128
    """Tokens of one sentence, end of sentence included; longer training pairs are left out and counted, longer texts
    to classify are cut short."""
    batching: str = "pack"
    """pack: several sentences a row, kept apart by segment masks; bucket: one a row, by length."""
    tokens_per_batch: int = 2048
    """Token slots of a batch, on each side."""
    row_length: int = 64
    """Token slots of a packed row, on each side (raised to `max_length` where that is larger)."""
    bucket_lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128)
    """Row lengths of `batching="bucket"`; one compilation each."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    kind: str = "bpe"
    """bpe or unigram (sentencepiece), word, char."""
    vocab_size: int = 8000
    joint: bool = True
    """One vocabulary for both languages."""
    max_texts: int = 0
    """It is trained on at most so many texts or pairs, spread evenly over the training data; 0: 200,000, of couplets
    2,000,000."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser (section 5.3) and its schedule."""

    name: str = "adam"
    """adam, adamw or another of `optim.OPTIMIZERS`."""
    schedule: str = "noam"
    """noam (section 5.3), rsqrt, cosine, linear, constant."""
    lr: float = 1.0
    """noam: the factor before the paper's formula; otherwise the peak learning rate."""
    warmup_steps: int = 4000
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0: no clipping."""
    accumulate_steps: int = 1
    """Parts into which a batch is cut to save memory; the update stays the same."""
    label_smoothing: float = 0.1
    mask_rate: float = 0.0
    """Share of the tokens of a text that are hidden from a classifier in training, drawn anew each time."""
    mask_loss: float = 0.0
    """Weight of guessing the hidden tokens (Devlin et al., 2019) beside naming the class, per token and per text."""


@dataclass(frozen=True)
class TrainingConfig:
    """Length of a run, checkpoints, averaging, what is logged."""

    num_steps: int = 100_000
    max_minutes: float = 0.0
    """End well within this wall-clock time, model written; 0: no limit."""
    log_every: int = 50
    eval_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    average_last: int = 1
    """At the end, try the mean of the parameters of the last so many checkpoints too (section 6.1)."""
    ema_decay: float = 0.0
    """Above 0: evaluate and write an exponential moving average of the parameters instead."""
    patience: int = 0
    """Evaluations without a better validation score before stopping early; 0: never."""
    metric: str = "bleu"
    """Score on the validation data that tells which checkpoint is best, such as bleu or exact_match."""
    num_samples: int = 3
    """Sample outputs shown at each evaluation."""


@dataclass(frozen=True)
class DecodingConfig:
    """How outputs are searched for (section 6.1)."""

    conventions: str = "paper"
    """paper, or a system whose searches are followed where they differ; see `decoding.CONVENTIONS`."""

    beam_size: int = 4
    alpha: float = 0.6
    """Exponent of the length penalty of Wu et al. (2016)."""
    max_extra_tokens: int = 50
    """An output is at most this many tokens longer than its input."""
    max_length: int = 0
    """Most tokens of an output; 0: no bound but the last."""
    batch_size: int = 64
    rules: str = "length,punctuation,repetition,distinct,tones=1"
    """What the lower line of a couplet keeps to, see `couplets.rules.Rules.parse`."""


@dataclass(frozen=True)
class Config:
    """One experiment: all that decides what a run learns, by groups of fields."""

    task: str = "translation"
    seed: int = 0
    init_from: str = ""
    """A model folder whose parameters the run starts from, see `training.origin`; empty: draw them."""
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default, to be changed by a file in `configs/` and on the command line."""
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def load_config_file(argument: str) -> ml_collections.ConfigDict:
    """What `get_config` of a Python file returns.

    Args:
        argument: `FILE.py`, or `FILE.py:ARGUMENT` for a `get_config` that takes one.

    Raises:
        UserError: if there is no such file, or it gives no config.
    """
    path, colon, choice = argument.partition(":")
    if not Path(path).is_file():
        raise UserError(f"{path} is no file; name a configuration, such as configs/multi30k.py:de-en.")
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"{path} has no function get_config; name a configuration, such as configs/numerals.py.")
        config = get_config(choice) if colon else get_config()
    except UserError:
        raise
    # The file is a person's own code, in which anything may go wrong.
    except Exception as error:
        cause = str(error).strip().partition("\n")[0].strip("\"'")
        raise UserError(f"{argument} gives no config ({type(error).__name__}: {cause}); see its get_config.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"get_config of {path} returns {type(config).__name__}, but must return a ConfigDict.")
    return config


def read_config(argument: str) -> Config:
    """The config of a Python file, see `load_config_file`, or of the `config.json` that a run leaves.

    Raises:
        UserError: if there is no such file, or it holds no config.
    """
    if not argument.endswith(".json"):
        return from_config_dict(load_config_file(argument))
    path = as_path(argument)
    try:
        with os_errors(path):
            content = path.read_bytes()
        values = json.loads(content.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{argument} is no config of a run ({error}); name the one in a work folder.") from error
    config: Config = build(Config, values, argument)
    return config


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
    """Cross from ml_collections to the frozen dataclasses.

    Raises:
        UserError: naming the field, if one is unknown or of the wrong type.
    """
    return build(Config, config.to_dict(), "config")


def build(cls: Any, values: Any, where: str) -> Any:
    """The dataclass `cls` with these values, and its defaults elsewhere; a default tells the type of its field.

    Raises:
        UserError: naming the field after `where`, if one is unknown or of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, but must be a group of fields.")
    defaults = cls()
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise UserError(f"{where}.{name} is no field; known here: {', '.join(known)}.")
    return cls(**{name: _checked(getattr(defaults, name), value, f"{where}.{name}") for name, value in values.items()})


def _checked(default: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(default):
        return build(type(default), value, where)
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, tuple) and isinstance(value, (list, tuple)):
        return tuple(_checked(default[0], item, where) for item in value)
    if type(value) is not type(default):
        raise UserError(f"{where} is {value!r}, but must be of type {type(default).__name__}.")
    return value
