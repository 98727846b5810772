"""Promises: an incomplete or damaged checkpoint is never used in silence, and a save that fails spoils no other."""

import json
import logging
import os
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from transformer_jax.system import UserError
from transformer_jax.training.checkpoint import Checkpoints, DamagedCheckpoint
from transformer_jax.training.step import TrainState, all_finite

SIZE = 4096


def state_at(step, size=SIZE):
    return {"params": {"kernel": jnp.arange(float(size)) + step}, "count": jnp.asarray(step)}


def like(state):
    sharding = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state)


LIKE = like(state_at(0))


def restored(folder, reports):
    """The step restored from a copy of checkpoints; asserts that its state is right."""
    with Checkpoints(folder, keep=3) as checkpoints:
        found = checkpoints.restore_newest(LIKE, reports.append)
    if found is None:
        return None
    state, metadata = found
    step = metadata["step"]
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    return step


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, keep=3) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), {"step": step, "score": -0.1})
    return folder


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["delete", "flip", "truncate", "empty"])
def test_each_file_in_turn_is_damaged(two, tmp_path, how):
    """The state that is used is right; the newest is named if it is not it."""
    for number, name in enumerate(files_of(two / "2")):
        folder = tmp_path / str(number)
        shutil.copytree(two, folder)
        if not (folder / "2" / name).stat().st_size and how != "delete":
            continue
        damage(folder / "2" / name, how)
        reports = []
        step = restored(folder, reports)
        is_needed = not name.endswith("commit_success.txt") and name != "_CHECKPOINT_METADATA"
        assert step == 1 or not is_needed, name
        assert (step == 1) == bool(reports), (name, reports)
        if reports:
            assert str(folder / "2") in reports[0]


def test_an_older_one_may_be_damaged(two, tmp_path):
    shutil.copytree(two, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "1" / "state")
    (tmp_path / "copy" / "2" / "foreign").write_bytes(b"ignored")
    reports = []
    assert restored(tmp_path / "copy", reports) == 2
    assert reports == []


def test_without_a_sound_one_nothing_starts_anew(two, tmp_path):
    shutil.copytree(two, tmp_path / "copy")
    for step in "12":
        (tmp_path / "copy" / step / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"has no sound checkpoint, all are damaged \(1, 2\); put back a copy"):
        restored(tmp_path / "copy", [])


def test_a_damaged_one_is_replaced_when_the_run_comes_to_its_step_again(two, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(two, folder)
    (folder / "protected.json").write_bytes(b"\xff")
    # With its checksums in place: where Orbax itself meets the damage, it leaves other reads behind.
    damage(next(path for path in (folder / "2" / "state" / "d").iterdir()), "flip")
    with Checkpoints(folder, keep=3) as checkpoints:
        assert checkpoints.restore_newest(LIKE, print)[1]["step"] == 1
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state_at(2), {"step": 2})
        assert checkpoints.steps() == [1, 2]
    assert restored(folder, []) == 2


def test_parameters_for_a_mean_are_checked_too(two, tmp_path):
    shutil.copytree(two, tmp_path / "copy")
    damage(next(path for path in (tmp_path / "copy" / "1" / "state" / "d").iterdir()), "flip")
    with Checkpoints(tmp_path / "copy", keep=3) as checkpoints, pytest.raises(DamagedCheckpoint, match=r"copy/1 can't"):
        checkpoints.restore_params(1, LIKE["params"])


@pytest.mark.parametrize("name", ["a[1]b", "*?", "back\\slash", "line\nbreak", "per%20cent", "größe 诗 ...", "gs:"])
def test_any_name_will_do(tmp_path, name):
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder, keep=1) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_at(step), {"step": step})
        checkpoints.read_back(2, state_at(2)["params"])
        assert checkpoints.steps() == [2]
    assert restored(folder, []) == 2


def test_what_storage_loses_is_found_when_it_is_read_back(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state_at(1), {})
        checkpoints.wait()
        with pytest.raises(UserError, match=r"kernel comes back .* with other values"):
            checkpoints.read_back(1, state_at(2)["params"])
        shutil.rmtree(tmp_path / "1" / "state" / "d")
        with pytest.raises(UserError, match="can't be read back; choose another --workdir"):
            checkpoints.read_back(1, state_at(1)["params"])


def test_a_full_disk_spoils_no_earlier_checkpoint(small_disk, capfd, caplog):
    with Checkpoints(small_disk, keep=3) as checkpoints:
        checkpoints.save(1, state_at(1), {"step": 1})
        checkpoints.wait()

        def save_too_much():
            checkpoints.save(2, {"kernel": jax.random.normal(jax.random.key(0), (1 << 20,))}, {"step": 2})
            checkpoints.wait()

        with pytest.raises(UserError, match=r"step 2 can't be written .*No space left on device") as caught:
            save_too_much()
        assert "\n" not in str(caught.value)
        assert "metadata_store_0" not in {thread.name for thread in threading.enumerate()}, "Orbax's threads end"
    told = capfd.readouterr()
    assert told.out + told.err + caplog.text == "", "nothing but the error"
    assert logging.getLogger("absl").filters == []
    assert sorted(path.name for path in small_disk.iterdir()) == ["1"]
    assert restored(small_disk, []) == 1


def test_a_thousand_with_pruning_leave_one(tmp_path):
    """Here a few; the long test counts memory."""
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state_at(step), {"step": step})
    assert files_of(tmp_path / "5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5"]


@pytest.mark.soak
def test_memory_stays_flat_over_a_thousand_checkpoints(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 1001):
            checkpoints.save(step, state_at(step), {"step": step})
            if step == 200:
                before = resident()
    assert resident() - before < 100, "MB"
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_nothing_but_finite_numbers_counts_as_finite():
    state = TrainState(jnp.asarray(1), {"a": jnp.ones(3)}, (), None)
    assert all_finite(state)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite(state._replace(params={"a": jnp.asarray([1.0, bad, 1.0])}))


def test_metadata_has_a_digest(two):
    stored = json.loads((two / "2" / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert set(stored) == {"metadata", "sha256"}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("part", ["params", "opt_state", "ema_params"])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_not_used(tmp_path, part, bad):
    """As release 0.1.0 wrote it. Without a sound one the run stops, and a model of it is never written."""
    good = {"params": jnp.ones(3), "opt_state": jnp.ones(3), "ema_params": jnp.ones(3)}
    reports = []
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(1, good, {"step": 1})
        checkpoints.save(2, good | {part: jnp.asarray([1.0, bad, 1.0])}, {"step": 2})
        assert checkpoints.restore_newest(like(good), reports.append)[1] == {"step": 1}
        assert "2 can't be read as a checkpoint (a number in it is not finite); an earlier one is used." in reports[0]
    shutil.rmtree(tmp_path / "1")
    with Checkpoints(tmp_path, keep=3) as checkpoints, pytest.raises(UserError, match="no sound checkpoint"):
        checkpoints.restore_newest(like(good), reports.append)
