import asyncio

import pytest

from benchmarks.results import OURS
from benchmarks.serving import CLIENTS, Load, load, percentile, records
from tests.serving.servers import served
from tests.tasks.toys import TEXTS, write_bundle
from transformer_jax.serving import load_engines


def test_percentiles_are_values_that_occurred():
    values = [3.0, 1.0, 2.0, 4.0]
    assert [percentile(values, share) for share in (0.25, 0.5, 0.51, 0.99, 1.0)] == [1, 2, 3, 4, 4]
    assert percentile([5.0], 0.5) == 5
    assert percentile(list(map(float, range(1, 1001))), 0.99) == 990


def test_rates_and_latencies_are_compared_by_number_of_clients():
    def repetition(scale):
        return {clients: Load(clients / scale, [scale, 2 * scale]) for clients in CLIENTS}

    found = {OURS: [repetition(1.0), repetition(3.0), repetition(2.0)], "one_at_a_time": [repetition(4.0)] * 3}
    by_name = {(record.subject, record.peer, record.unit): record for record in records(found, "work", "CPU")}
    assert len(by_name) == 3 * len(CLIENTS) * 2
    ours, theirs = (by_name["8 clients", peer, "requests/s"] for peer in (None, "one_at_a_time"))
    assert (ours.value, theirs.value, theirs.ratio) == (4, 2, 2)
    slow = by_name["1 client, latency, 99th percentile", "one_at_a_time", "ms"]
    assert (slow.value, slow.ratio) == (8, 2)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return load_engines([str(write_bundle(tmp_path_factory.mktemp("benchmark") / "model"))])[0]


def test_clients_ask_one_request_after_the_other(engine):
    with served([engine]) as client:
        found = asyncio.run(load(client.port, 3, [text for text in TEXTS if text.strip()], 0.5))
        answered = client.metric("transformer_jax_texts_total")
    assert len(found.milliseconds) == answered >= 3
    assert found.requests_per_second > 0
    assert min(found.milliseconds) > 0


def test_a_refusal_is_not_counted_as_an_answer(engine):
    with served([engine], token="a") as client, pytest.raises(RuntimeError, match="401"):
        asyncio.run(load(client.port, 1, ["a"], 0.5))
