"""Translation: sentence pairs, BLEU, a `Translator`."""

from transformer_jax.data import OWN_SETS
from transformer_jax.tasks.registry import register_task

OWN_SETS["multi30k"] = "transformer_jax.tasks.translation.multi30k"
register_task(
    "translation",
    "transformer_jax.tasks.translation.task:TranslationTask",
    "transformer_jax.tasks.translation.translator:Translator",
    command="transformer_jax.tasks.translation.command:COMMAND",
)
