"""Everything with side effects: the loop, checkpoints, logs."""

from transformer_jax.training.run import run

__all__ = ["run"]
