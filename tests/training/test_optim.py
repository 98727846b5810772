import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import OptimConfig
from transformer_jax.system import UserError
from transformer_jax.training.step import OPTIMIZERS, make_optimizer, make_schedule, noam_schedule

WARMUP, STEPS = 40, 200


def rates(**changes):
    """The learning rates of updates 1, 2, ..., as float64."""
    schedule = make_schedule(
        dataclasses.replace(OptimConfig(warmup_steps=WARMUP), **changes), d_model=64, num_steps=STEPS
    )
    return np.array([float(schedule(count)) for count in range(STEPS)])


def test_noam_equals_equation_3():
    expected = [64**-0.5 * min(step**-0.5, step * WARMUP**-1.5) for step in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates(lr=1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(rates(lr=0.5), 0.5 * np.array(expected), rtol=1e-5)
    # The paper's base model peaks at step 4000 with 7e-4.
    base = [float(noam_schedule(512, 4000)(step - 1)) for step in (1, 3999, 4000, 4001, 16000)]
    assert max(base) == base[2]
    np.testing.assert_allclose(base[2], 6.99e-4, rtol=1e-3)
    np.testing.assert_allclose(base[4], base[2] / 2, rtol=1e-5)


DECAYS = {
    "rsqrt": lambda step: (WARMUP / step) ** 0.5,
    "cosine": lambda step: (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2,
    "linear": lambda step: (STEPS - step) / (STEPS - WARMUP),
    "constant": lambda step: 1.0,
}


@pytest.mark.parametrize("schedule", DECAYS)
def test_others_rise_to_the_peak_and_decay_by_their_formula(schedule):
    expected = [0.3 * (step / WARMUP if step <= WARMUP else DECAYS[schedule](step)) for step in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates(schedule=schedule, lr=0.3), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ["noam", *DECAYS])
def test_without_warmup_and_beyond_the_end_rates_stay_finite_and_positive(schedule):
    rate = make_schedule(OptimConfig(schedule=schedule, warmup_steps=0), d_model=64, num_steps=5)
    values = np.array([float(rate(count)) for count in (0, 1, 5, 1000)])
    assert np.isfinite(values).all()
    assert (values[:1] > 0).all()
    assert (values >= 0).all()


def test_adam_equals_its_formula():
    config = OptimConfig()
    optimizer = make_optimizer(config, lambda count: 0.1)
    params = jnp.array([1.0, -2.0, 3.0])
    state = optimizer.init(params)
    expected, mean, square = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for step in range(1, 6):
        gradient = jnp.sin(step * jnp.arange(1.0, 4.0))
        updates, state = optimizer.update(gradient, state, params)
        params = params + updates
        g = np.asarray(gradient, np.float64)
        mean, square = 0.9 * mean + 0.1 * g, 0.98 * square + 0.02 * g**2
        expected -= 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.98**step)) + 1e-9)
        np.testing.assert_allclose(params, expected, rtol=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    optimizer = make_optimizer(OptimConfig(name=name, clip_norm=1.0), lambda count: 0.01)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(lambda p: jnp.sum(p**2))(params), state, params)
        return params + updates, state

    params = jnp.array([1.0, -1.0])
    state = optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state)
    assert float(jnp.sum(params**2)) < 1.9


def test_clipping_bounds_the_global_norm():
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    config = OptimConfig(name="sgd", beta1=0.0, clip_norm=2.5)
    for factor, expected in ((1.0, 2.5), (0.1, 0.5)):
        optimizer = make_optimizer(config, lambda count: 1.0)
        scaled = jax.tree.map(lambda g, factor=factor: factor * g, gradients)
        updates, _ = optimizer.update(scaled, optimizer.init(gradients), gradients)
        norm = float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(updates))))
        np.testing.assert_allclose(norm, expected, rtol=1e-5)


def test_weight_decay_shrinks_without_a_gradient():
    optimizer = make_optimizer(OptimConfig(name="adamw", weight_decay=0.5), lambda count: 0.1)
    params = jnp.array([2.0])
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(params), params)
    np.testing.assert_allclose(params + updates, 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r"config\.optim\.schedule is 'step', but must be one of noam, "):
        make_schedule(OptimConfig(schedule="step"), d_model=64, num_steps=5)
    with pytest.raises(UserError, match=r"config\.optim\.name is 'adma', but must be one of adam, "):
        make_optimizer(OptimConfig(name="adma"), lambda count: 0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_is_never_ignored(name):
    optimizer_of = lambda decay: make_optimizer(OptimConfig(name=name, weight_decay=decay), lambda count: 0.1)  # noqa: E731
    if name in ("adam", "sgd"):
        with pytest.raises(UserError, match=rf"config\.optim\.weight_decay is 0\.5, but {name} has none"):
            optimizer_of(0.5)
        return
    params = jnp.array([2.0])
    with_decay, without = (
        optimizer.update(jnp.ones(1), optimizer.init(params), params)[0]
        for optimizer in (optimizer_of(0.5), optimizer_of(0.0))
    )
    np.testing.assert_allclose(with_decay - without, -0.1 * 0.5 * params, rtol=1e-4)
