"""Translation: sentence pairs, BLEU, a `Translator`."""

from transformer_jax.tasks.registry import register_task

register_task(
    "translation",
    "transformer_jax.tasks.translation.task:TranslationTask",
    "transformer_jax.tasks.translation.translator:Translator",
    command="transformer_jax.tasks.translation.command:COMMAND",
)
