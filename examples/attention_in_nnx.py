"""Use `MultiHeadAttention` in your own Flax NNX module, trained with NNX and optax.

The module reads a padded set of (key, value) pairs, in any order, and predicts the value with the largest key.
Run `python examples/attention_in_nnx.py`; it takes a few seconds.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from transformer_jax import MultiHeadAttention


class ValueOfLargest(nnx.Module):
    """Attention from one learned query to a set."""

    def __init__(self, width, *, rngs):
        self.question = nnx.Param(jax.random.normal(rngs.params(), (1, 1, width)))
        self.embed = nnx.Linear(2, width, rngs=rngs)
        self.attention = MultiHeadAttention(width, num_heads=4, rngs=rngs)
        self.answer = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, items, is_there):
        """Answers [B] for items [B, S, 2]; `is_there`, bool [B, S], is False for padding."""
        questions = jnp.broadcast_to(self.question[...], (items.shape[0], *self.question.shape[1:]))
        found = self.attention(questions, self.embed(items), is_there[:, None, None, :])
        return self.answer(found)[:, 0, 0]


@jax.jit
def draw(key):
    """256 random sets of 2 to 6 items, padded with values that would be wrong answers, and their answers."""
    keys = jax.random.split(key)
    items = jax.random.uniform(keys[0], (256, 6, 2))
    is_there = jnp.arange(6) < jax.random.randint(keys[1], (256, 1), 2, 7)
    largest = jnp.where(is_there, items[..., 0], -1.0).argmax(axis=1)
    return jnp.where(is_there[..., None], items, 9.0), is_there, items[jnp.arange(256), largest, 1]


def loss_fn(model, items, is_there, answers):
    """Mean squared error."""
    return ((model(items, is_there) - answers) ** 2).mean()


@nnx.jit
def step(model, optimizer, batch):
    """One update, in place."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, *batch)
    optimizer.update(model, grads)
    return loss


if __name__ == "__main__":
    model = ValueOfLargest(32, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    losses = [float(step(model, optimizer, draw(jax.random.key(i)))) for i in range(500)]
    print(f"mean squared error {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
