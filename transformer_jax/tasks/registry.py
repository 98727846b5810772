"""The registry of tasks: how each is trained and its model folders loaded, its config group and its command.

Parts may be given as "module:name" and are imported when first used; this module imports no JAX.
"""

import abc
import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from transformer_jax.system import UserError
from transformer_jax.task_groups import add_group, load_plugins

if TYPE_CHECKING:
    from transformer_jax.config import Config
    from transformer_jax.nn import ModelConfig
    from transformer_jax.tasks.base import Task
    from transformer_jax.tasks.service import Service


class Command(abc.ABC):
    """The subcommand of `transformer-jax` for the models of a task, and their evaluation by `transformer-jax evaluate`.

    Its module must be quick to import: import JAX, and modules that do, inside the methods.
    """

    name: str
    """`transformer-jax NAME`."""
    help: str
    """A phrase for the list of commands."""
    description: str
    epilog: str | None = None
    example: str = ""
    """A command line for the end of the help."""
    working: str = "answering"
    """What a progress display says of its work on lines."""
    subject: str
    """What messages call the task, as in "a model of SUBJECT"."""
    scores: str
    """The scores that `evaluate` reports, for its help."""
    options: Mapping[str, Mapping[str, Any]] = {}
    """Options of `evaluate` that these models have, such as "--rules", to the arguments of `add_argument`. An option
    that is not given must be None. Tasks may share an option; the first one's help is shown."""
    service_reference: Any = None
    """A `tasks.service.Service`, or "module:name" of one, which is imported on access; None: `serve` refuses these
    models."""

    @property
    def service(self) -> "Service | None":
        """How `transformer-jax serve` answers requests with these models."""
        return cast("Service | None", resolved(self.service_reference))

    @abc.abstractmethod
    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the subcommand, besides those of `add_model`."""

    @abc.abstractmethod
    def run(self, arguments: argparse.Namespace) -> None:
        """Run the subcommand.

        Raises:
            UserError: if the arguments are wrong; nothing has been written then.
        """

    @abc.abstractmethod
    def evaluate(self, arguments: argparse.Namespace, model: Any) -> dict[str, Any]:
        """The report of a loaded model, to be printed as JSON.

        Raises:
            UserError: if the arguments are wrong.
        """


@runtime_checkable
class ModelClass(Protocol):
    """Makes the object that `load` returns: a class, such as `Translator` or `TextClassifier`.

    One with an attribute `tab`, a class derived from `tasks.tab.Tab` or "module:name", is on the page of
    `transformer-jax demo`.
    """

    @property
    def settings_type(self) -> Any:
        """A frozen dataclass with a default for each field, and `title` and `limits` for the model's card.

        A class method `upgrade(settings)`, if it has one, turns the stored settings of earlier releases into today's.
        """

    @property
    def model_type(self) -> Any:
        """An NNX module, made by `model_type(model_config, rngs=...)`."""

    def __call__(self, model_config: "ModelConfig", params: Any, tokenizer: Any, settings: Any) -> Any:
        """Combine the parts of a folder; `tokenizer` is a `TokenizerPair`, or None without a vocabulary."""


TaskClass = Callable[["Config", dict[str, bytes] | None], "Task"]
"""`(config, tokenizer_files) -> task`: a task class; the files are those of a tokenizer trained before, or None."""


@dataclass(frozen=True)
class Registration:
    """What is registered under the name of a task; strings are imported on access."""

    name: str
    task_reference: Any
    model_reference: Any
    config: type[Any] | None
    """Class of the config group."""
    command_reference: Any

    @property
    def task(self) -> TaskClass | None:
        """Trains a model; None for model folders without a task."""
        return cast("TaskClass | None", resolved(self.task_reference))

    @property
    def model(self) -> ModelClass:
        """Loads a model folder."""
        return cast(ModelClass, resolved(self.model_reference))

    @property
    def command(self) -> Command | None:
        """Its subcommand of `transformer-jax`, and how `evaluate` scores its models."""
        return cast("Command | None", resolved(self.command_reference))


REGISTRY: dict[str, Registration] = {}
"""By the name of the task; use `register_task`, `registered` and `registered_names`."""

IMPORTED_SEQ2SEQ, IMPORTED_STACKS = "translation", "transformer"
"""Tasks of models imported from other systems: with source and target text, and without a vocabulary."""

LOWER_IS_BETTER = ("loss", "perplexity", "expected_calibration_error")
"""Those metrics of our own tasks that improve by getting smaller, known without importing JAX."""

_reserved: set[str] = set()


def register_task(
    name: str,
    task: TaskClass | str | None,
    model: ModelClass | str,
    *,
    config: type[Any] | None = None,
    command: Command | str | None = None,
) -> None:
    """Let `config.task = name` train `task`, and let `load` make a `model` of the folders that come out.

    A trained model stores the name only: register its task before loading it. Registering a name again replaces it.
    Installed packages can register their tasks with an entry point, see `task_groups.ENTRY_POINTS`.

    Args:
        name: value of `config.task`, and of the field `task` in a model's `config.json`.
        task: data, loss and metrics, made by `task(config, tokenizer_files)`; see `tasks.base.Task`. None: the model
            is not trained under this name.
        model: text in and text out, made by `model(model_config, params, tokenizer, settings)`; a `Translator` serves
            every task with an encoder-decoder model.
        config: the group `config.<name>`, a frozen dataclass with a default for each field; see `add_group`.
        command: a `Command`, such as a `PairCommand`. Without one, the command line does not serve these models.

    `task`, `model` and `command` may be strings "module:name".

    Raises:
        UserError: if the name is one of this package's own.
    """
    if name in _reserved:
        raise UserError(f"The task {name!r} is one of transformer_jax's own; choose another name.")
    REGISTRY[name] = Registration(name, task, model, config, command)
    add_group(name, config)


def reserve_names() -> None:
    """Let nobody register another task under a name that is registered now."""
    _reserved.update(REGISTRY)


def registered_names() -> tuple[str, ...]:
    """Names of the registered tasks, in order of registration."""
    load_plugins()
    return tuple(REGISTRY)


def registered(name: str) -> Registration:
    """What is registered under a name.

    Raises:
        UserError: if nothing is.
    """
    if name not in registered_names():
        raise UserError(f"{name!r} is not a registered task; known here: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def lower_is_better(task: str, metric: str) -> bool:
    """Whether a metric of a task improves by getting smaller; imports the class of tasks that are not our own."""
    if metric in LOWER_IS_BETTER or task in _reserved or task not in registered_names():
        return metric in LOWER_IS_BETTER
    named = getattr(REGISTRY[task].task, "lower_is_better", ())
    return isinstance(named, tuple) and metric in named


def make_task(config: "Config", tokenizer_files: dict[str, bytes] | None = None) -> "Task":
    """The task that `config.task` names.

    Args:
        config: the experiment.
        tokenizer_files: files of a trained tokenizer; default: train one on the task's data.

    Raises:
        UserError: if there is no such task, or its data can't be read.
    """
    return task_class(config)(config, tokenizer_files)


def task_class(config: "Config") -> TaskClass:
    """What is registered to train the task that `config.task` names.

    Raises:
        UserError: if there is no such task.
    """
    trained = [name for name in registered_names() if REGISTRY[name].task_reference is not None]
    task = REGISTRY[config.task].task if config.task in trained else None
    if task is None:
        raise UserError(f"config.task is {config.task!r}, but must be one of {', '.join(trained)}.")
    return task


def checked_settings(task: str, values: Any, where: str) -> Any:
    """Settings of a model, those of earlier releases upgraded, as an instance of the task's `settings_type`.

    Raises:
        UserError: naming the field after `where`, if it is unknown or of the wrong type.
    """
    from transformer_jax.config import build

    settings_type = registered(task).model.settings_type
    upgrade = getattr(settings_type, "upgrade", None)
    if upgrade is not None and isinstance(values, dict):
        values = upgrade(values)
    return build(settings_type, values, where)


def resolved(reference: Any) -> Any:
    """What a string "module:name" names, or anything else itself."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
