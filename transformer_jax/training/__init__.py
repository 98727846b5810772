"""Everything with side effects: the loop, checkpoints, logs."""

from transformer_jax.training.loop import run

__all__ = ["run"]
