"""Tasks by name: what `config.task` trains, and what `load` makes of a model folder."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from transformer_jax.config import Config
from transformer_jax.nn import ModelConfig
from transformer_jax.system.errors import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.tasks.classification.task import ClassificationTask
from transformer_jax.tasks.classification.text_classifier import TextClassifier
from transformer_jax.tasks.couplets.task import CoupletTask
from transformer_jax.tasks.couplets.writer import CoupletWriter
from transformer_jax.tasks.transformer_stacks import TransformerStacks
from transformer_jax.tasks.translation.task import TranslationTask
from transformer_jax.tasks.translation.translator import Translator


@runtime_checkable
class ModelClass(Protocol):
    """What `load` makes an object of a folder with: a class, such as `Translator` or `TextClassifier`."""

    @property
    def settings_type(self) -> Any:
        """A frozen dataclass with a default for each field, and `title` and `limits` for the model's card."""

    @property
    def model_type(self) -> Any:
        """An NNX module, made by `model_type(model_config, rngs=...)`."""

    def __call__(self, model_config: ModelConfig, params: Any, tokenizer: Any, settings: Any) -> Any:
        """Put the parts of a folder together; `tokenizer` is a `TokenizerPair`, or None without a vocabulary."""


MODELS: dict[str, ModelClass] = {
    "translation": Translator,
    "classification": TextClassifier,
    "couplet": CoupletWriter,
    "transformer": TransformerStacks,
}
"""By the name of the task; `register_task` adds to it."""


TaskClass = Callable[[Config, dict[str, bytes] | None], Task]
"""`(config, tokenizer_files) -> task`: a class of tasks, made with the files of a tokenizer if there is one already."""


TASKS: dict[str, TaskClass] = {
    "translation": TranslationTask,
    "classification": ClassificationTask,
    "couplet": CoupletTask,
}
"""By the name that `config.task` gives; `register_task` adds to it."""


def make_task(config: Config, tokenizer_files: dict[str, bytes] | None = None) -> Task:
    """The task that `config` names.

    Args:
        config: of the experiment.
        tokenizer_files: of a tokenizer trained before; None: train one on the task's data.

    Raises:
        UserError: if there is no such task, or its data can't be read.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task is {config.task!r}, but must be one of {', '.join(TASKS)}.")
    return TASKS[config.task](config, tokenizer_files)


IMPORTED_SEQ2SEQ, IMPORTED_STACKS = "translation", "transformer"
"""Tasks of models imported from other systems: with source and target text, and without a vocabulary."""

_OURS = frozenset(MODELS)


def register_task(name: str, task: TaskClass, model: ModelClass) -> None:
    """Let `config.task = name` train `task`, and let `load` make a `model` of the folders that come out.

    Nothing of it is stored with a trained model: whoever loads one registers its task first. Registering a name again
    replaces what it stood for.

    Args:
        name: what `config.task` and a model's `config.json` say.
        task: data, loss and metrics, made by `task(config, tokenizer_files)`; see `tasks.base.Task`. A subclass of
            `Seq2SeqTask` needs its data and an `evaluate`.
        model: text in and text out, made by `model(model_config, params, tokenizer, settings)`; a `Translator` will do
            for every task with an encoder-decoder model.

    Raises:
        UserError: if the name is one of this package's own.
    """
    if name in _OURS:
        raise UserError(f"The task {name!r} is one of transformer_jax's own; choose another name.")
    TASKS[name] = task
    MODELS[name] = model
