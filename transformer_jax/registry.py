"""Further tasks, of people who import this package: known to the training loop and to `load`."""

from transformer_jax.bundle.kinds import MODELS, ModelClass
from transformer_jax.errors import UserError
from transformer_jax.tasks import TASKS, TaskClass

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
