"""Use our schedules and optimizers with your own model, here a plain function, and your own loop.

Run `python examples/schedule_elsewhere.py`.
"""

import jax
import jax.numpy as jnp
import optax

from transformer_jax import OptimConfig, make_optimizer, make_schedule, noam_schedule

NUM_STEPS = 400

# Equation (3) is an optax schedule, for any optax optimizer.
noam = noam_schedule(d_model=512, warmup_steps=100, factor=0.5)
adam = optax.adam(noam, b1=0.9, b2=0.98, eps=1e-9)

# The training loop's schedules and optimizers are available by name.
config = OptimConfig(name="adamw", schedule="cosine", lr=1e-2, warmup_steps=20, weight_decay=0.01, clip_norm=1.0)
adamw = make_optimizer(config, make_schedule(config, d_model=512, num_steps=NUM_STEPS))


def model(params, x):
    """A network with one hidden layer: [B, 1] to [B, 1]."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss_fn(params, x):
    """Mean squared error against a sine."""
    return ((model(params, x) - jnp.sin(3 * x)) ** 2).mean()


def train(optimizer, num_steps=NUM_STEPS):
    """The losses of a run."""
    keys = jax.random.split(jax.random.key(0), 2)
    params = {"w1": 2 * jax.random.normal(keys[0], (1, 32)), "b1": jnp.zeros(32)}
    params |= {"w2": jax.random.normal(keys[1], (32, 1)) / 6, "b2": jnp.zeros(1)}

    @jax.jit
    def step(params, opt_state, key):
        loss, grads = jax.value_and_grad(loss_fn)(params, jax.random.uniform(key, (64, 1), minval=-1))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = optimizer.init(params), []
    for key in jax.random.split(jax.random.key(1), num_steps):
        params, opt_state, loss = step(params, opt_state, key)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    for update in (0, 49, 99, 399):
        print(f"equation (3) at update {update + 1:3}: {float(noam(update)):.5f}")
    for name, optimizer in {"adam, equation (3)": adam, "adamw, cosine, clipped": adamw}.items():
        losses = train(optimizer)
        print(f"{name}: loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
