"""One update of the parameters, its optimizer and schedule (section 5.3), and what a run carries between updates."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from transformer_jax.config import OptimConfig
from transformer_jax.data.pipeline import Position
from transformer_jax.nn import unstack_layers
from transformer_jax.nn.losses import Batch, LossFn, Params, Sums
from transformer_jax.sharding import gathered, standard_numerics
from transformer_jax.system import UserError
from transformer_jax.system.files import AnyPath

JSON = Any
"""A value that `json` can write: a number, string, boolean, None, or a list or dict of such values."""

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
        step = jnp.asarray(count, jnp.float32) + 1.0
        return factor * d_model**-0.5 * jnp.minimum(step**-0.5, step * max(warmup_steps, 1) ** -1.5)

    return schedule


UNBOUNDED_SCHEDULES = ("noam", "rsqrt", "constant")
"""Those that do not depend on the number of steps, which may change when a run is resumed."""


def make_schedule(config: OptimConfig, *, d_model: int, num_steps: int) -> optax.Schedule:
    """The learning rate at each update, counted from 0.

    `noam` is equation (3). `rsqrt`, `cosine`, `linear` and `constant` rise linearly to `config.lr` over
    `config.warmup_steps` updates; then they fall as 1 / sqrt(step), as half a cosine or a line to 0 at `num_steps`, or
    stay constant.

    Args:
        config: source of `schedule`, `lr` and `warmup_steps`.
        d_model: width of the model, for `noam`.
        num_steps: total number of updates.
    """
    peak, warmup = config.lr, max(config.warmup_steps, 1)
    rest = max(num_steps - warmup, 1)

    def after_warmup(decay: Callable) -> optax.Schedule:
        def schedule(count: Array | int) -> Array:
            step = jnp.asarray(count, jnp.float32) + 1.0
            return peak * jnp.minimum(step / warmup, decay(jnp.clip((step - warmup) / rest, 0.0, 1.0)))

        return schedule

    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "noam": lambda: noam_schedule(d_model, config.warmup_steps, config.lr),
        "rsqrt": lambda: noam_schedule(1, config.warmup_steps, peak * warmup**0.5),
        "cosine": lambda: after_warmup(lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done))),
        "linear": lambda: after_warmup(lambda done: 1.0 - done),
        "constant": lambda: after_warmup(lambda done: 1.0),
    }
    return schedules[config.schedule]()


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that `config` names (section 5.3), preceded by clipping of the global norm if `clip_norm` > 0.

    Args:
        config: source of `name`, `beta1`, `beta2`, `epsilon`, `weight_decay` and `clip_norm`.
        schedule: any optax schedule.

    Raises:
        UserError: if `config` sets a weight decay that the optimizer does not have.
    """
    if config.weight_decay and config.name in ("adam", "sgd"):
        raise UserError(f"config.optim.weight_decay is {config.weight_decay}, but {config.name} has none; name adamw.")
    optimizer = OPTIMIZERS[config.name](config, schedule)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm > 0 else optimizer


class TrainState(NamedTuple):
    """Everything that an update changes."""

    step: Int[Array, ""]
    """Number of updates so far."""
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None
    """Exponential moving average of the parameters, or None."""


@standard_numerics()
def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first update."""
    ema_params = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema_params)


@standard_numerics()
def train_step(
    state: TrainState,
    batch: Batch,
    *,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    skip_nonfinite: bool = False,
    log_norms: bool = False,
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
        skip_nonfinite: whether to leave all but `step` unchanged if the loss or the gradient is not finite.
        log_norms: whether to return the `layer_norms` of the new parameters and the mean gradient, too.

    Returns:
        The new state, and the sums of `loss_fn` with two values added: the `grad_norm` of the mean gradient, and
        `nonfinite`, 1 if that or the loss is not finite, else 0. Norms by layer are added as `param_norm/LAYER` and
        `grad_norm/LAYER`.

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
    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(grad_norm) & jnp.isfinite(sums["loss"])
    updated = TrainState(state.step + 1, params, opt_state, ema_params)
    if skip_nonfinite:
        kept = state._replace(step=state.step + 1)
        updated = jax.tree.map(partial(jnp.where, is_finite), updated, kept)
    sums = sums | {"grad_norm": grad_norm, "nonfinite": 1.0 - is_finite.astype(jnp.float32)}
    if log_norms:
        for what, tree in (("param", updated.params), ("grad", grads)):
            sums |= {f"{what}_norm/{layer}": norm for layer, norm in layer_norms(tree).items()}
    return updated, sums


def layer_norms(params: Params) -> Sums:
    """The Euclidean norm of each sub-module of a layer, such as `encoder.0.self_attention`, and of each other module.

    Args:
        params: parameters or gradients, with or without stacked layers.
    """

    def squares_by_row(leaf: Array) -> Array:
        # By the first axis, along which layers may be stacked: large arrays are read once, whole.
        return jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(range(1, leaf.ndim)))

    squares: Sums = {}
    for path, rows in leaves_by_name(unstack_layers(jax.tree.map(squares_by_row, params))).items():
        layer = _layer_of(path)
        squares[layer] = squares.get(layer, jnp.zeros((), jnp.float32)) + jnp.sum(rows)
    return {layer: jnp.sqrt(square) for layer, square in squares.items()}


def _layer_of(path: str) -> str:
    """`encoder.0.self_attention` for `encoder.layers.0.self_attention.query.kernel`, else the path of the module."""
    stack, separator, rest = path.partition(".layers.")
    if separator:
        return f"{stack}.{'.'.join(rest.split('.')[:2])}"
    return path.rpartition(".")[0] or path


def norms_of(sums: Mapping[str, Any]) -> dict[str, float]:
    """The norms by layer among the results of `train_step`."""
    norms = {name: value for name, value in sums.items() if "/" in name}
    return {name: float(value) for name, value in jax.device_get(norms).items()}


@jax.jit
def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether no number in a tree of arrays is NaN or infinite."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


@dataclass
class Progress:
    """What a checkpoint stores beside the state, so that a resumed run equals an uninterrupted one."""

    position: Position = field(default_factory=Position)
    """Position of the next batch."""
    best_score: float = -math.inf
    best_tie: float = -math.inf
    """The second part of its `evaluation.Rank`."""
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    unlogged: dict[str, float] = field(default_factory=dict)
    """Sums since the last line of the log."""
    nonfinite: int = 0
    """Updates skipped in a row because of a loss or gradient that was not finite."""
    skipped: int = 0
    """All updates skipped so far."""
    minutes: float = 0.0
    """Wall-clock time up to the checkpoint, over all processes that worked on the run."""
    eval_every: int = 0
    """Steps between evaluations at that time, which may change when the run resumes; 0: unknown."""

    def add(self, sums: dict[str, Any]) -> float:
        """Add the sums of one step; returns its weight, the number of tokens predicted.

        Of a step that was skipped, see `step.train_step`, only that is added.
        """
        if sums.get("nonfinite"):
            self.nonfinite += 1
            self.skipped += 1
            sums = {"skipped": 1.0, "weight": 0.0}
        else:
            self.nonfinite = 0
        for name, value in sums.items():
            if name == "nonfinite" or "/" in name:  # norms by layer are those of one step
                continue
            self.unlogged[name] = self.unlogged.get(name, 0.0) + float(value)
        return float(sums["weight"])

    def to_json(self) -> dict[str, JSON]:
        """The fields as checkpoint metadata."""
        return dataclasses.asdict(self) | {"position": list(self.position)}

    @classmethod
    def from_json(cls, metadata: dict[str, JSON]) -> "Progress":
        """The inverse of `to_json`."""
        return cls(**{**metadata, "position": Position(*metadata["position"])})


def require_same(folder: AnyPath, stored: PyTree, expected: PyTree) -> None:
    """Require that a checkpoint holds what a configuration needs.

    Args:
        folder: the checkpoint.
        stored: its arrays, or their descriptions.
        expected: the arrays needed, as `jax.ShapeDtypeStruct`s.

    Raises:
        UserError: naming the first array that differs.
    """
    have, want = leaves_by_name(stored), leaves_by_name(expected)
    remedy = "train with the configuration it was made with, or into another workdir."
    missing = sorted(set(want) - set(have))
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, which this configuration needs; {remedy}")
    foreign = sorted(set(have) - set(want))
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which this configuration does not have; {remedy}")
    for name, leaf in want.items():
        if _kind(have[name]) != _kind(leaf):
            raise UserError(
                f"{name} is {_kind(have[name])} in {folder}, but {_kind(leaf)} in this configuration; {remedy}"
            )


def leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree, by names such as `params.encoder.embedding`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
