"""Learning-rate schedules and optimisers (section 5.3)."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array

from transformer_jax.config import OptimConfig
from transformer_jax.system.errors import UserError

OPTIMIZERS: dict[str, Callable[[OptimConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adam": lambda c, lr: optax.adam(lr, b1=c.beta1, b2=c.beta2, eps=c.epsilon),
    "adamw": lambda c, lr: optax.adamw(lr, b1=c.beta1, b2=c.beta2, eps=c.epsilon, weight_decay=c.weight_decay),
    "lion": lambda c, lr: optax.lion(lr, b1=c.beta1, b2=c.beta2, weight_decay=c.weight_decay),
    "sgd": lambda c, lr: optax.sgd(lr, momentum=c.beta1),
}


def noam_schedule(d_model: int, warmup_steps: int, factor: float = 1.0) -> optax.Schedule:
    """Equation (3): factor * d_model^-0.5 * min(step^-0.5, step * warmup_steps^-1.5), with step counted from 1.

    Args:
        d_model: width of the model.
        warmup_steps: number of updates during which the learning rate rises.
        factor: scale of the whole schedule; 1 in the paper.

    Returns:
        An optax schedule: the number of updates so far, from 0, to the learning rate of the next.
    """

    def schedule(count: Array | int) -> Array:
        step = count + 1.0
        return factor * d_model**-0.5 * jnp.minimum(step**-0.5, step * max(warmup_steps, 1) ** -1.5)

    return schedule


def make_schedule(config: OptimConfig, *, d_model: int, num_steps: int) -> optax.Schedule:
    """The learning rate at each update, counted from 0.

    `noam` is equation (3). `rsqrt`, `cosine`, `linear` and `constant` rise linearly to `config.lr` over
    `config.warmup_steps` updates; then they fall as 1 / sqrt(step), as half a cosine or a line to 0 at `num_steps`, or
    stay constant.

    Args:
        config: source of `schedule`, `lr` and `warmup_steps`.
        d_model: width of the model, for `noam`.
        num_steps: total number of updates.

    Raises:
        UserError: if the schedule is unknown.
    """
    peak, warmup = config.lr, max(config.warmup_steps, 1)
    rest = max(num_steps - warmup, 1)

    def after_warmup(decay: Callable) -> optax.Schedule:
        return lambda count: (
            peak * jnp.minimum((count + 1.0) / warmup, decay(jnp.clip((count + 1.0 - warmup) / rest, 0.0, 1.0)))
        )

    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "noam": lambda: noam_schedule(d_model, config.warmup_steps, config.lr),
        "rsqrt": lambda: noam_schedule(1, config.warmup_steps, peak * warmup**0.5),
        "cosine": lambda: after_warmup(lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done))),
        "linear": lambda: after_warmup(lambda done: 1.0 - done),
        "constant": lambda: after_warmup(lambda done: 1.0),
    }
    if config.schedule not in schedules:
        raise UserError(f"config.optim.schedule is {config.schedule!r}, but must be one of {', '.join(schedules)}.")
    return schedules[config.schedule]()


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser that `config` names (section 5.3), preceded by clipping of the global norm if `clip_norm` > 0.

    Args:
        config: source of `name`, `beta1`, `beta2`, `epsilon`, `weight_decay` and `clip_norm`.
        schedule: any optax schedule.

    Raises:
        UserError: if the optimiser is unknown, or `config` sets a weight decay that it does not have.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"config.optim.name is {config.name!r}, but must be one of {', '.join(OPTIMIZERS)}.")
    if config.weight_decay and config.name in ("adam", "sgd"):
        raise UserError(f"config.optim.weight_decay is {config.weight_decay}, but {config.name} has none; name adamw.")
    optimizer = OPTIMIZERS[config.name](config, schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm > 0 else optimizer
