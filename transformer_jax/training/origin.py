"""What a run starts from: drawn parameters, or those of a model folder (`config.init_from`)."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax

from transformer_jax.config import Config, build
from transformer_jax.nn import ModelConfig, Seq2Seq
from transformer_jax.nn.losses import Params
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.model_folder import checked_settings, load, task_of
from transformer_jax.tasks.registry import make_task, registered, registered_names
from transformer_jax.tasks.transformer_stacks import TransformerStacks

OF_THE_RUN = (
    "dropout_rate",
    "attention_dropout_rate",
    "attention_implementation",
    "dtype",
    "scan_layers",
    "remat",
)
"""Fields of `config.model` that a run sets, whatever model it starts from."""
OUTSIDE_STACKS = ("positions", "max_positions", "tie_embeddings", "output_bias", "scale_embeddings")
"""And those that stacks without a vocabulary have no say in."""


@dataclass(frozen=True)
class Origin:
    """What is settled before the first step."""

    model: ModelConfig
    """Of the run; sizes of vocabularies apart."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the model that the run starts from; those that the task does not set are kept."""
    tokenizer_files: dict[str, bytes] | None = None
    """None: a tokenizer is trained."""
    params: Params = field(default_factory=dict)
    """The parts of the parameters that are not drawn, in the memory of the host."""

    def to_json(self) -> dict[str, Any]:
        """What a run that goes on must know of it, beside its tokenizer."""
        return {"model": dataclasses.asdict(self.model), "settings": self.settings}


def read_origin(config: Config) -> Origin:
    """The model folder that `config` names, or nothing but its sizes.

    Raises:
        UserError: if the folder can't be read, or its model is none for the task.
    """
    if not config.init_from:
        return Origin(config.model)
    task = task_of(config.init_from)
    is_seq2seq = config.task in registered_names() and registered(config.task).model.model_type is Seq2Seq
    own_stacks = task == "transformer" and is_seq2seq
    if task != config.task and not own_stacks:
        raise UserError(
            f"config.init_from names a model of task {task!r}, but config.task is {config.task!r}; "
            "name a model of the same task."
        )
    loaded = load(config.init_from)
    is_stacks = isinstance(loaded, TransformerStacks)
    kept = OF_THE_RUN + (OUTSIDE_STACKS if is_stacks else ())
    return Origin(
        model=dataclasses.replace(loaded.model_config, **{name: getattr(config.model, name) for name in kept}),
        settings={} if is_stacks else dataclasses.asdict(loaded.settings),
        tokenizer_files=None if is_stacks else loaded.tokenizer.files(),
        params=jax.device_get(loaded.params),
    )


def stored_origin(config: Config, values: Any, tokenizer_files: dict[str, bytes], where: str) -> Origin:
    """That of a run that has begun, without parameters.

    Args:
        config: of the run.
        values: as `Origin.to_json` gives them.
        tokenizer_files: of the run.
        where: the file, for messages.

    Raises:
        UserError: if the values are none of an origin.
    """
    if not isinstance(values, dict) or set(values) != {"model", "settings"}:
        raise UserError(f"{where} does not tell what the run started from; choose another --workdir.")
    model: ModelConfig = build(ModelConfig, values["model"], f"{where}: model")
    settings = values["settings"]
    if settings and config.task in registered_names():
        settings = dataclasses.asdict(checked_settings(config.task, settings, f"{where}: settings"))
    return Origin(model, settings, tokenizer_files)


def params_of_origin(config: Config, origin: Origin) -> Params:
    """Parameters of the model folder that a run which has begun once more reads; see `Origin.params`.

    Args:
        config: of the run.
        origin: what the run started from.

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
