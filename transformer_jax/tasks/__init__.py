"""What each task adds to the one training loop: data, head, loss, metrics, text out."""

from collections.abc import Callable

from transformer_jax.config import Config
from transformer_jax.errors import UserError
from transformer_jax.tasks.base import Evaluation, Task
from transformer_jax.tasks.classification import ClassificationTask
from transformer_jax.tasks.couplet import CoupletTask
from transformer_jax.tasks.translation import TranslationTask

TaskClass = Callable[[Config, dict[str, bytes] | None], Task]
"""`(config, tokenizer_files) -> task`: a class of tasks, made with the files of a tokenizer if there is one already."""

TASKS: dict[str, TaskClass] = {
    "translation": TranslationTask,
    "classification": ClassificationTask,
    "couplet": CoupletTask,
}
"""By the name that `config.task` gives; `register_task` adds to it."""

__all__ = ["TASKS", "Evaluation", "Task", "TaskClass", "make_task"]


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
