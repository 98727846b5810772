import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from transformer_jax.system import UserError
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.step import TrainState

METADATA = {
    "position": [3, 1, 4],
    "best": 0.1 + 0.2,
    "worst": float("-inf"),
    "tiny": 5e-324,
    "none": None,
    "config": {"model": {"d_model": 8}, "name": "größe"},
}


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any
    ema: Any = None


def make_state(seed=0, width=8):
    key = jax.random.key(seed)
    params = {
        "encoder": {"layers": {0: {"kernel": jax.random.normal(key, (16, width)), "bias": jnp.arange(float(width))}}},
        "output": None,
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, opt_state = optimizer.update(jax.tree.map(jnp.cos, params), optimizer.init(params), params)
    return State(jnp.asarray(seed, jnp.int32), params, opt_state)


def like(state, sharding=None):
    sharding = SingleDeviceSharding(jax.devices()[0]) if sharding is None else sharding
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2) as opened:
        yield opened


def test_state_and_metadata_come_back_exactly(checkpoints):
    assert checkpoints.steps() == []
    state = make_state()
    checkpoints.save(7, state, METADATA)
    assert max(checkpoints.steps()) == 7
    restored, metadata = checkpoints.restore(7, like(state))
    assert_same(restored, state)
    assert metadata == METADATA
    assert metadata["best"].hex() == (0.1 + 0.2).hex()


def test_params_alone(checkpoints):
    state = make_state(seed=3)
    checkpoints.save(1, state, {})
    assert_same(checkpoints.restore_params(1, like(state.params)), state.params)
    with pytest.raises(UserError, match=r"bias is float32\[8\] .* float32\[6\]"):
        checkpoints.restore_params(1, like(make_state(width=6).params))


class FormerState(NamedTuple):
    """The state as release 0.1.0 stored it."""

    step: Any
    params: Any
    opt_state: Any
    average: Any


@pytest.mark.parametrize("average", [None, {"kernel": jnp.arange(4.0)}], ids=["none", "some"])
def test_a_checkpoint_of_an_earlier_release(checkpoints, average):
    now = TrainState(*make_state(seed=2)[:3], average)
    checkpoints.save(1, FormerState(*now), {"a": 1})
    restored, metadata = checkpoints.restore(1, like(now))
    assert type(restored) is TrainState
    assert_same(restored, now)
    assert metadata == {"a": 1}
    assert_same(checkpoints.restore_params(1, like(now.params)), now.params)
    other = {"kernel": jnp.arange(3.0)} if average else {"kernel": jnp.arange(4.0)}
    with pytest.raises(UserError, match=r"average\.kernel"):
        checkpoints.restore(1, like(now._replace(ema_params=other)))


def test_other_devices(checkpoints):
    state = make_state(seed=1)
    eight = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = lambda x: NamedSharding(eight, PartitionSpec("data") if x.ndim == 2 else PartitionSpec())  # noqa: E731
    spread = jax.device_put(state, jax.tree.map(rows, state))
    checkpoints.save(1, spread, {})
    on_one, _ = checkpoints.restore(1, like(state, SingleDeviceSharding(jax.devices()[5])))
    assert_same(on_one, state)
    assert on_one.params["encoder"]["layers"][0]["kernel"].devices() == {jax.devices()[5]}
    checkpoints.save(2, on_one, {})
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows(x)), state)
    on_eight, _ = checkpoints.restore(2, target)
    assert_same(on_eight, state)
    assert on_eight.params["encoder"]["layers"][0]["kernel"].addressable_shards[0].data.shape == (2, 8)


def test_one_off_schedule_changes_not_which_others_stay(tmp_path):
    with Checkpoints(tmp_path / "checkpoints", keep=2, is_scheduled=lambda step: step % 2 == 0) as checkpoints:
        for step in (2, 4, 5):
            checkpoints.save(step, make_state(), {})
        assert checkpoints.steps() == [2, 4, 5]
        checkpoints.save(6, make_state(), {})
        assert checkpoints.steps() == [4, 6]
        checkpoints.save(7, make_state(), {})
        checkpoints.save(9, make_state(), {})
        assert checkpoints.steps() == [4, 6, 9]


def test_keeps_the_latest_and_the_protected(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in range(1, 4):
            checkpoints.save(step, make_state(), {})
        assert checkpoints.steps() == [2, 3]
        checkpoints.protect(2)
        checkpoints.save(4, make_state(), {})
        checkpoints.save(5, make_state(), {})
        assert checkpoints.steps() == [2, 4, 5]
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(6, make_state(), {})
        assert checkpoints.steps() == [2, 5, 6]
        checkpoints.protect(6)
        checkpoints.save(7, make_state(), {})
        checkpoints.save(8, make_state(), {})
        assert checkpoints.steps() == [6, 7, 8]
        with pytest.raises(ValueError, match="step 2"):
            checkpoints.protect(2)


def test_a_saved_step_stays(checkpoints):
    checkpoints.save(1, make_state(1), {"a": 1})
    checkpoints.save(1, make_state(2), {"a": 2})
    restored, metadata = checkpoints.restore(1, like(make_state()))
    assert int(restored.step) == metadata["a"] == 1


def test_a_state_may_be_donated_after_save(checkpoints):
    state = make_state()
    expected = jax.device_get(state)
    checkpoints.save(1, state, {})
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    restored, _ = checkpoints.restore(1, like(expected))
    assert_same(jax.device_get(restored), expected)


def altered(state, change):
    layer = state.params["encoder"]["layers"][0]
    return state._replace(params={"encoder": {"layers": {0: change(dict(layer))}}, "output": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layer: layer | {"extra": layer["bias"]}, r"lacks params\.encoder\.layers\.0\.extra"),
        (lambda layer: {"kernel": layer["kernel"]}, r"holds params\.encoder\.layers\.0\.bias"),
        (
            lambda layer: layer | {"bias": jnp.zeros(9)},
            r"params\.encoder\.layers\.0\.bias is float32\[8\].*float32\[9\]",
        ),
        (lambda layer: layer | {"bias": jnp.zeros(8, jnp.bfloat16)}, r"0\.bias is float32\[8\].*bfloat16\[8\]"),
    ],
)
def test_another_state_is_refused(checkpoints, change, message):
    state = make_state()
    checkpoints.save(1, state, {})
    with pytest.raises(UserError, match=message):
        checkpoints.restore(1, like(altered(state, change)))


def test_missing_step(checkpoints):
    checkpoints.save(4, make_state(), {})
    with pytest.raises(UserError, match="no checkpoint of step 5; it has: 4"):
        checkpoints.restore(5, like(make_state()))


@pytest.mark.parametrize("damage", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/d", "state"])
def test_damaged_checkpoint(checkpoints, tmp_path, damage):
    # One array: when the first of several reads fails, Orbax leaves the others behind, and pytest finds their errors.
    state = {"params": jnp.arange(4096.0)}
    checkpoints.save(1, state, {})
    checkpoints.wait()
    broken = tmp_path / "checkpoints" / "1" / damage
    for file in [broken] if broken.is_file() else [inner for inner in broken.rglob("*") if inner.is_file()]:
        file.write_bytes(b"")
    for read in (
        lambda: checkpoints.restore(1, like(state)),
        lambda: checkpoints.restore_params(1, like(state["params"])),
    ):
        with pytest.raises(UserError, match=r"checkpoints/1 can't be read .* delete that folder"):
            read()


def test_unusable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file can't hold checkpoints"):
        Checkpoints(tmp_path / "file", keep=1)
    with pytest.raises(UserError, match=r"keep_checkpoints is 0"):
        Checkpoints(tmp_path, keep=0)
    (tmp_path / "protected.json").write_text("{")
    Checkpoints(tmp_path, keep=1).close()  # the run protects its best checkpoint again
    (tmp_path / "protected.json").unlink()
    os.mkfifo(tmp_path / "protected.json")
    with pytest.raises(UserError, match="can't hold checkpoints: Not a regular file"):
        Checkpoints(tmp_path, keep=1)


def test_an_unfinished_checkpoint_is_never_seen(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.save(2, make_state(2), {})
    # What a run leaves that is killed while it writes step 2.
    shutil.copytree(tmp_path / "2", tmp_path / "7.orbax-checkpoint-tmp")
    shutil.move(tmp_path / "2", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert max(checkpoints.steps()) == 1
        checkpoints.save(2, make_state(2), {})
        assert int(checkpoints.restore(2, like(make_state()))[0].step) == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["1", "2"]


SAVE_FOREVER = """
import itertools, sys, pathlib
import jax.numpy as jnp
from transformer_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=2)
for step in itertools.count(1):
    checkpoints.save(step, {"params": jnp.full((512, 1024), step, jnp.int32)}, {"step": step})
"""


def test_survives_sigkill(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "3").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        latest = max(checkpoints.steps())
        assert latest >= 3
        restored, metadata = checkpoints.restore(latest, like({"params": jnp.zeros((512, 1024), jnp.int32)}))
    assert metadata == {"step": latest}
    assert (np.asarray(restored["params"]) == latest).all()
