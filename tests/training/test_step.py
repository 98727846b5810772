from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.nn import stack_layers
from transformer_jax.nn.losses import eval_step
from transformer_jax.sharding import MeshConfig, make_mesh, on_mesh, state_shardings
from transformer_jax.system import UserError
from transformer_jax.training.step import Progress, init_state, layer_norms, norms_of, train_step

SEED = 3


def squares(params, batch, key):
    """Weighted squared errors of a line, with noise on them if there is a key."""
    predicted = batch["x"] @ params["slope"] + params["offset"]
    if key is not None:
        predicted += jax.random.normal(key, predicted.shape)
    errors = batch["weight"] * (predicted - batch["y"]) ** 2
    return {"loss": errors.sum(), "weight": batch["weight"].sum()}


def quiet(params, batch, key):
    del key
    return squares(params, batch, None)


def make_params():
    return {"slope": jnp.array([1.0, -2.0, 0.5]), "offset": jnp.array(0.25, jnp.float32)}


def make_batch(rows=12, seed=0):
    """Rows that count for very unequal numbers of tokens, some for none."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 9, rows).astype(np.float32)
    weight[::4] = 0.0
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=rows).astype(np.float32),
        "weight": weight,
    }


def step(optimizer=None, **options):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    return partial(train_step, optimizer=optimizer, **{"loss_fn": quiet, "seed": SEED} | options)


def start(optimizer=None, *, ema=False):
    return init_state(make_params(), optax.sgd(0.1) if optimizer is None else optimizer, ema=ema)


def stacks(seed=0):
    """Parameters of two stacks of unequal depth, with random values."""
    rng = np.random.default_rng(seed)

    def layer():
        return {
            "self_attention": {"query": {"kernel": rng.normal(size=(8, 16)), "bias": rng.normal(size=16)}},
            "feed_forward": {
                "wide": {"kernel": rng.normal(size=(8, 32))},
                "narrow": {"kernel": rng.normal(size=(32, 8))},
            },
        }

    tree = {
        "encoder": {"layers": {number: layer() for number in range(3)}, "norm": {"scale": rng.normal(size=8)}},
        "decoder": {"layers": {number: layer() for number in range(2)}},
        "embedding": {"table": rng.normal(size=(64, 8))},
        "temperature": np.array(-2.0),
    }
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), tree)


def norms_by_hand(tree):
    def norm(part):
        return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(part)))

    found = {"encoder.norm": norm(tree["encoder"]["norm"]), "embedding": norm(tree["embedding"]), "temperature": 2.0}
    for stack in ("encoder", "decoder"):
        for number, layer in tree[stack]["layers"].items():
            found |= {f"{stack}.{number}.{name}": norm(module) for name, module in layer.items()}
    return found


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("arrange", [dict, stack_layers], ids=["apart", "stacked"])
def test_norms_by_layer_are_those_by_hand(sizes, arrange):
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
    params = arrange(stacks())
    params = jax.device_put(params, state_shardings(params, mesh))
    norms = jax.jit(on_mesh(layer_norms, mesh))(params)
    expected = norms_by_hand(stacks())
    assert len(expected) == 3 + 2 * 5
    assert {name: float(norm) for name, norm in norms.items()} == pytest.approx(expected, rel=1e-6)


def test_a_step_returns_norms_only_if_asked():
    batch, state = make_batch(), start()
    _, sums = step()(state, batch)
    assert set(sums) == {"loss", "weight", "grad_norm", "nonfinite"}
    after, more = step(log_norms=True)(state, batch)
    norms = norms_of(more)
    assert {name: more[name] for name in set(more) - set(norms)} == sums
    gradient = mean_gradient(state.params, batch)
    assert norms == pytest.approx(
        {
            **{f"grad_norm/{name}": np.linalg.norm(value) for name, value in gradient.items()},
            **{f"param_norm/{name}": np.linalg.norm(value) for name, value in after.params.items()},
        },
        rel=1e-5,
    )
    assert not any("/" in name for name in unlogged(more)), "they are of one step, not sums"


def unlogged(sums):
    progress = Progress()
    progress.add(sums)
    return progress.unlogged


def mean_gradient(params, batch):
    """By hand: of the weighted mean of the squares."""
    residual = batch["x"] @ np.asarray(params["slope"]) + float(params["offset"]) - batch["y"]
    scaled = 2 * batch["weight"] * residual / batch["weight"].sum()
    return {"slope": scaled @ batch["x"], "offset": scaled.sum()}


def assert_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, **{"rtol": 1e-5} | tolerance), actual, expected)


def differ(a, b):
    return any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_update_follows_the_gradient_of_the_mean():
    params, batch = make_params(), make_batch()
    state, sums = step()(start(), batch)
    gradient = mean_gradient(params, batch)
    assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))
    assert int(state.step) == 1
    assert float(sums["weight"]) == batch["weight"].sum()
    assert_close(sums["loss"], quiet(params, batch, None)["loss"])
    assert_close(sums["grad_norm"], np.sqrt((gradient["slope"] ** 2).sum() + gradient["offset"] ** 2))


def test_updates_equal_those_of_optax():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(0.1, 0.0, 5)))
    state, params = start(optimizer), make_params()
    opt_state = optimizer.init(params)
    for number in range(3):
        batch = make_batch(seed=number)
        state, _ = step(optimizer)(state, batch)
        gradient = jax.tree.map(jnp.asarray, mean_gradient(params, batch))
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    assert_close(state.params, params, rtol=1e-4)
    assert_close(state.opt_state, opt_state, rtol=1e-4)


@pytest.mark.parametrize("parts", [2, 3, 4, 12])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
    optimizer, batch = optax.adam(0.1), make_batch()
    whole, whole_sums = step(optimizer)(start(optimizer), batch)
    accumulated, sums = step(optimizer, accumulate_steps=parts)(start(optimizer), batch)
    assert_close(accumulated, whole)
    assert_close(sums, whole_sums)


def test_parts_draw_different_noise():
    """With equal rows, equal keys would give the sum of equal losses."""
    batch = jax.tree.map(lambda a: np.repeat(a[1:2], 2, axis=0), make_batch())
    _, sums = step(loss_fn=squares, accumulate_steps=2)(start(), batch)
    part = jax.tree.map(lambda a: a[:1], batch)
    key = jax.random.fold_in(jax.random.key(SEED), 0)
    losses = [float(squares(make_params(), part, k)["loss"]) for k in jax.random.split(key, 2)]
    assert losses[0] != losses[1]
    assert_close(sums["loss"], sum(losses))


def test_parts_that_do_not_divide_the_rows():
    with pytest.raises(UserError, match=r"config\.optim\.accumulate_steps is 5, .* 12 rows"):
        step(accumulate_steps=5)(start(), make_batch())


def test_random_key_is_a_function_of_seed_and_step():
    batch = make_batch()
    noisy = step(loss_fn=squares)
    state = start()
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(SEED), number)
        expected = squares(state.params, batch, key)["loss"]
        again = start()._replace(step=state.step, params=state.params, opt_state=state.opt_state)
        (state, sums), (_, sums_again) = noisy(state, batch), noisy(again, batch)
        assert_close(sums["loss"], expected)
        assert float(sums["loss"]) == float(sums_again["loss"])
    fresh = noisy(start(), batch)
    assert differ(fresh, noisy(start()._replace(step=jnp.int32(1)), batch))
    assert differ(fresh, step(loss_fn=squares, seed=SEED + 1)(start(), batch))


def test_moving_average():
    decay, average = 0.3, make_params()
    state = start(ema=True)
    assert_close(state.ema_params, average)
    for number in range(6):
        state, _ = step(ema_decay=decay)(state, make_batch(seed=number))
        kept = min(decay, (1 + number) / (10 + number))
        average = jax.tree.map(lambda a, p, kept=kept: kept * a + (1 - kept) * p, average, state.params)
        assert_close(state.ema_params, average)
    assert kept == decay, "both branches of the minimum were met"
    assert differ(state.ema_params, state.params)


def test_no_average_unless_asked():
    state, _ = step(ema_decay=0.5)(start(), make_batch())
    assert state.ema_params is None


def test_eval_step_has_no_noise():
    params, batch = make_params(), make_batch()
    sums = eval_step(params, batch, loss_fn=squares)
    assert_close(sums, quiet(params, batch, None))
    assert differ(sums, squares(params, batch, jax.random.key(0)))


def test_jitted_with_donation_equals_plain():
    optimizer = optax.adam(0.1)
    plain = step(optimizer, loss_fn=squares, accumulate_steps=2, ema_decay=0.9)
    jitted = jax.jit(plain, donate_argnums=0)
    expected, state = start(optimizer, ema=True), start(optimizer, ema=True)
    for number in range(3):
        batch, before = make_batch(seed=number), state
        expected, expected_sums = plain(expected, batch)
        state, sums = jitted(state, batch)
        assert before.params["slope"].is_deleted()
        assert_close(state, expected)
        assert_close(sums, expected_sums)
    assert jitted._cache_size() == 1, "types stay what they were"


def test_empty_batch_changes_nothing():
    batch = make_batch() | {"weight": np.zeros(12, np.float32)}
    state, sums = step()(start(), batch)
    assert_close(state.params, make_params())
    assert float(sums["weight"]) == 0.0


@pytest.mark.parametrize("accumulate_steps", [1, 3])
def test_nan_is_not_hidden(accumulate_steps):
    batch = make_batch()
    batch["y"][1] = np.nan
    state, sums = step(accumulate_steps=accumulate_steps)(start(), batch)
    assert np.isnan(sums["loss"])
    assert np.isnan(sums["grad_norm"])
    assert np.isnan(state.params["slope"]).all()
