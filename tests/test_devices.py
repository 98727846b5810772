import threading
import time

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.sharding import AT_ONCE, replicated, spread, workers

ONE = jnp.ones(3)


def device_of(arrays):
    (device,) = arrays.devices()
    return device


def test_results_come_in_the_order_of_the_items():
    def work(arrays, item):
        time.sleep(0.02 * (item == 0))  # the first item finishes last
        return float(arrays.sum()) * item

    assert list(spread(work, range(5), ONE)) == [0, 3, 6, 9, 12]
    assert list(spread(work, [7], ONE)) == [21]
    assert list(spread(work, [], ONE)) == []


def test_every_device_that_holds_the_arrays_works():
    everywhere = replicated({"a": ONE, "b": jnp.zeros(2)})
    assert workers(everywhere) == (8, AT_ONCE["cpu"])
    together = threading.Barrier(8, timeout=20)

    def work(arrays, item):
        together.wait()  # all eight run at the same time
        assert {device_of(leaf) for leaf in jax.tree.leaves(arrays)} == {device_of(arrays["a"])}
        return device_of(arrays["a"])

    assert set(spread(work, range(8), everywhere)) == set(jax.local_devices())


def test_arrays_split_over_devices_are_whole_for_each():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split = jax.device_put(jnp.arange(8.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    found = list(spread(lambda arrays, item: (device_of(arrays), float(arrays.sum())), range(9), split))
    assert {total for _, total in found} == {28.0}
    assert {device for device, _ in found} <= set(jax.devices()[:4])


def test_a_single_piece_of_work_is_done_by_one_device():
    everywhere = replicated(ONE)
    assert list(spread(lambda arrays, item: device_of(arrays), [0], everywhere)) == [jax.local_devices()[0]]


def test_one_device_has_some_pieces_in_hand():
    assert workers(jax.device_put(ONE, jax.devices()[3])) == (1, AT_ONCE["cpu"])
    together = threading.Barrier(AT_ONCE["cpu"], timeout=20)

    def work(arrays, item):
        together.wait()
        return device_of(arrays)

    assert list(spread(work, range(2), jax.device_put(ONE, jax.devices()[3]))) == [jax.devices()[3]] * 2


def test_arrays_of_no_device_are_used_where_jax_would():
    assert workers({"a": 1.0}) == (1, AT_ONCE["cpu"])
    assert list(spread(lambda arrays, item: arrays["a"] + item, range(3), {"a": 1.0})) == [1, 2, 3]


def test_a_failure_is_raised_in_its_turn():
    def work(arrays, item):
        if item == 1:
            raise ValueError("this one")
        return item

    results = spread(work, range(4), ONE)
    assert next(results) == 0
    with pytest.raises(ValueError, match="this one"):
        next(results)
