"""Tasks, a room each; importing this package registers ours, in the order of `--help`. It imports no JAX."""

import transformer_jax.tasks.translation  # isort: skip
import transformer_jax.tasks.classification  # isort: skip
import transformer_jax.tasks.couplets  # isort: skip  # noqa: F401
from transformer_jax.tasks.registry import register_task, reserve_names

register_task("transformer", None, "transformer_jax.tasks.seq2seq_model:TransformerStacks")
reserve_names()
