"""One update of the parameters as a pure function."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from transformer_jax.nn.losses import Batch, LossFn, Params, Sums
from transformer_jax.sharding import gathered
from transformer_jax.system.errors import UserError


class TrainState(NamedTuple):
    """Everything that an update changes."""

    step: Int[Array, ""]
    """Number of updates so far."""
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None
    """Exponential moving average of the parameters, or None."""


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first update."""
    ema_params = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> tuple[TrainState, Sums]:
    """One update. All arguments but `state` and `batch` are static: bind them, then jit.

    The random key is a function of (seed, step), so that a resumed run draws the same numbers as an uninterrupted one.

    Args:
        state: the state before the update; donate it.
        batch: arrays with a leading row axis.
        loss_fn: sums of the loss and its weight over a batch.
        optimizer: any optax transformation.
        seed: seed of dropout.
        accumulate_steps: number of parts to process in turn to save memory; without dropout the update is the same.
        ema_decay: decay of the moving average; at first (1 + step) / (10 + step), to forget the initial parameters.

    Returns:
        The new state, and the sums of `loss_fn` with the `grad_norm` of the mean gradient added.

    Raises:
        UserError: if the rows of the batch do not divide into `accumulate_steps` parts.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def objective(params: Params, part: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Sums]:
        sums = loss_fn(gathered(params), part, key)
        return sums["loss"], sums

    gradient = jax.grad(objective, has_aux=True)
    if accumulate_steps == 1:
        grads, sums = gradient(state.params, batch, key)
    else:
        rows = jax.tree.leaves(batch)[0].shape[0]
        if rows % accumulate_steps:
            raise UserError(
                f"config.optim.accumulate_steps is {accumulate_steps}, but must divide the {rows} rows of a batch "
                "(config.data.tokens_per_batch / row length)."
            )
        # Row r goes to part r % accumulate_steps: every device keeps its own rows.
        parts = jax.tree.map(lambda a: a.reshape(-1, accumulate_steps, *a.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part_and_key: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(state.params, *part_and_key)), None

        shapes = jax.eval_shape(gradient, state.params, jax.tree.map(lambda a: a[0], parts), key)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        (grads, sums), _ = jax.lax.scan(add, zeros, (parts, jax.random.split(key, accumulate_steps)))
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums["weight"], 1.0), grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema_params, params)
    return TrainState(state.step + 1, params, opt_state, ema_params), sums | {"grad_norm": optax.tree.norm(grads)}
