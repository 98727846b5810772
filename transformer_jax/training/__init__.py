"""Training: setup, the loop, evaluation, checkpoints and logs."""

from transformer_jax.training.loop import Outcome, run
from transformer_jax.training.setup import make_evaluator

__all__ = ["Outcome", "make_evaluator", "run"]
