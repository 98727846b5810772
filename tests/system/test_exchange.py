import threading

import jax
import jax.numpy as jnp
import pytest

from tests.system.fellows import Fellows
from transformer_jax.system import UserError, distributed


@pytest.fixture
def three(monkeypatch):
    return Fellows(monkeypatch, 3)


def exchanged(three, rounds):
    """What each process gathers in some rounds of one exchange."""
    exchange = distributed.Exchange()
    exchanges = [exchange, *(distributed.Exchange() for _ in range(2))]
    for other in exchanges[1:]:
        other._name = exchange._name  # as in a process of its own, whose first this is
    return three.do(lambda i: [exchanges[i].gather({"who": i, "round": number}) for number in range(rounds)])


def test_every_process_gathers_the_values_of_all_in_order(three):
    expected = [[{"who": who, "round": number} for who in range(3)] for number in range(20)]
    assert exchanged(three, 20) == [expected] * 3
    assert len(three.keys) <= 12, "what all have read is forgotten"


def test_large_values_travel_in_chunks(three, monkeypatch):
    monkeypatch.setattr("transformer_jax.system.distributed.exchange.CHUNK_BYTES", 7)
    exchanges = [distributed.Exchange() for _ in range(3)]
    for exchange in exchanges:
        exchange._name = "one"
    values = ["", "äöü" * 10, list(range(100))]
    assert three.do(lambda i: exchanges[i].gather(values[i])) == [values] * 3
    assert max(map(len, three.keys.values())) == 7


def test_an_exchange_that_is_closed_waits_no_more(three):
    exchange = distributed.Exchange()

    def wait(index):
        if index == 0:
            threading.Timer(0.2, exchange.close).start()
            return exchange.gather("alone")
        return None

    assert "was closed" in str(three.do(wait)[0])


def test_with_one_process_everything_is_its_own():
    value = {"anything": (1, 2)}
    assert distributed.all_gather(value) == [value]
    assert distributed.broadcast(value) is value
    assert distributed.parallel_map(lambda own: [2 * item for item in own], (1, 2, 3)) == [2, 4, 6]
    assert distributed.broadcast_files({"a": b"\xff"}) == {"a": b"\xff"}
    tree = {"a": jnp.ones(3)}
    assert distributed.local_copy(tree) is tree
    distributed.assert_equal({"anything": value})
    distributed.barrier()
    assert (distributed.process_count(), distributed.process_index(), distributed.is_main()) == (1, 0, True)


def test_messages_name_what_differs(monkeypatch):
    settings = [{"config.seed": 0, "--workdir": "a"}, {"config.seed": 0, "--workdir": "a"}, {"config.seed": 7}]
    monkeypatch.setattr("transformer_jax.system.distributed.exchange.all_gather", lambda value: settings)
    with pytest.raises(UserError, match=r"^--workdir is None at process 2, but 'a' at process 0; start all with"):
        distributed.assert_equal(settings[0])
    settings[2]["--workdir"] = "a"
    with pytest.raises(UserError, match=r"^config\.seed is 7 at process 2, but 0 at process 0"):
        distributed.assert_equal(settings[0])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 11])
def test_a_parallel_map_does_each_item_once_and_keeps_the_order(three, monkeypatch, size):
    done = []

    def square(own):
        assert own, "nobody is called for nothing"
        done.extend(own)
        return [item**2 for item in own]

    barrier, slots = threading.Barrier(3), [None] * 3

    def gather(value):
        slots[three.here.index] = value
        barrier.wait(5)
        return list(slots)

    monkeypatch.setattr("transformer_jax.system.distributed.exchange.all_gather", gather)
    results = three.do(lambda _: distributed.parallel_map(square, range(size)))
    assert results == [[item**2 for item in range(size)]] * 3
    assert sorted(done) == list(range(size))


def test_a_local_copy_is_whole_on_every_device(monkeypatch):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    tree = {"a": jax.device_put(jnp.arange(6.0), sharding)}
    monkeypatch.setattr("transformer_jax.system.distributed.exchange.process_count", lambda: 2)
    copy = distributed.local_copy(tree)
    assert copy["a"].sharding.is_fully_replicated
    assert copy["a"].sharding.device_set == set(jax.local_devices())
    assert copy["a"].tolist() == tree["a"].tolist()
