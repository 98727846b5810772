import threading
from concurrent.futures import CancelledError

import pytest

from tests.serving.servers import PATIENCE, until
from transformer_jax.serving.batching import Batcher, Closed, Full


class Work:
    """Doubles numbers and notes its calls; while it is held, it does not return. Negative numbers fail."""

    def __init__(self):
        self.calls, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, items):
        self.calls.append(list(items))
        assert self.free.wait(PATIENCE)
        if min(items) < 0:
            raise ValueError(str(min(items)))
        return [2 * item for item in items]


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def make(work):
    made = []

    def make(**options):
        settings = {"key": lambda item: abs(item) % 2, "size": lambda item: 1, "max_waiting": 100} | options
        made.append(Batcher(work, **settings))
        return made[-1]

    yield make
    work.free.set()
    for batcher in made:
        batcher.close(PATIENCE)


def busy(work, batcher):
    """Let the batcher begin with 0, and hold it."""
    work.free.clear()
    first = batcher.submit(0)
    until(lambda: work.calls)
    return first


def test_what_waits_is_answered_together_and_in_order(work, make):
    batcher = make()
    first = busy(work, batcher)
    others = [batcher.submit(number) for number in (2, 4, 6)]
    assert batcher.waiting == 3
    work.free.set()
    assert [future.result(PATIENCE) for future in (first, *others)] == [0, 4, 8, 12]
    assert work.calls == [[0], [2, 4, 6]]


def test_only_equal_keys_are_answered_together(work, make):
    batcher = make()
    busy(work, batcher)
    futures = [batcher.submit(number) for number in (1, 2, 3, 4)]
    work.free.set()
    assert [future.result(PATIENCE) for future in futures] == [2, 4, 6, 8]
    assert sorted(work.calls[1:]) == [[1, 3], [2, 4]]


def test_clients_that_ask_again_are_waited_for(work, make):
    batcher = make(gather=2 * PATIENCE)  # were it waited out, the results would not come in time
    first = busy(work, batcher)
    others = [batcher.submit(number) for number in (2, 4)]
    work.free.set()
    assert first.result(PATIENCE) == 0
    again = batcher.submit(6)
    assert [future.result(PATIENCE) for future in (*others, again)] == [4, 8, 12]
    futures = [batcher.submit(number) for number in (8, 10, 12)]
    assert [future.result(PATIENCE) for future in futures] == [16, 20, 24]
    assert work.calls == [[0], [2, 4, 6], [8, 10, 12]]


def test_who_does_not_ask_again_is_not_waited_for_long(work, make):
    batcher = make(gather=0.01)
    busy(work, batcher)
    futures = [batcher.submit(number) for number in (2, 4)]
    work.free.set()
    for future in futures:
        future.result(PATIENCE)
    assert batcher.submit(6).result(PATIENCE) == 12


def test_a_batch_is_limited_but_never_empty(work, make):
    batcher = make(size=lambda item: item, most=10)
    busy(work, batcher)
    futures = [batcher.submit(number) for number in (4, 6, 8, 20)]
    work.free.set()
    assert [future.result(PATIENCE) for future in futures] == [8, 12, 16, 40]
    assert work.calls == [[0], [4, 6], [8], [20]]


def test_there_are_only_so_many_places_and_who_leaves_frees_one(work, make):
    batcher = make(max_waiting=2)
    busy(work, batcher)
    leaving, staying = batcher.submit(2), batcher.submit(4)
    with pytest.raises(Full):
        batcher.submit(6)
    assert leaving.cancel()
    assert batcher.waiting == 1
    coming = batcher.submit(8)
    work.free.set()
    assert [future.result(PATIENCE) for future in (staying, coming)] == [8, 16]
    assert [2] not in work.calls
    assert all(2 not in call for call in work.calls)


def test_who_leaves_while_another_group_is_answered_is_dropped(work, make):
    batcher = make()
    busy(work, batcher)
    even, odd = batcher.submit(2), batcher.submit(3)
    work.free.set()
    even.result(PATIENCE)
    odd.result(PATIENCE)
    work.calls.clear()
    odd.result(PATIENCE)
    busy(work, batcher)
    even, odd = batcher.submit(2), batcher.submit(3)
    work.calls.clear()

    def leave(_):
        assert odd.cancel()  # after the batch was taken, before its second group

    even.add_done_callback(leave)
    work.free.set()
    until(odd.cancelled)
    assert batcher.submit(5).result(PATIENCE) == 10
    assert work.calls == [[2], [5]]


def test_one_that_fails_does_not_spoil_the_others(work, make):
    batcher = make()
    busy(work, batcher)
    good, bad, other = (batcher.submit(number) for number in (2, -4, 6))
    work.free.set()
    assert [future.result(PATIENCE) for future in (good, other)] == [4, 12]
    with pytest.raises(ValueError, match="-4"):
        bad.result(PATIENCE)
    assert batcher.submit(8).result(PATIENCE) == 16


def test_closing_answers_what_waits_and_takes_no_more(work, make):
    batcher = make()
    busy(work, batcher)
    waiting = batcher.submit(2)
    closing = threading.Thread(target=batcher.close, args=(PATIENCE,))
    closing.start()
    until(lambda: batcher._is_closed)
    with pytest.raises(Closed):
        batcher.submit(4)
    work.free.set()
    assert waiting.result(PATIENCE) == 4
    closing.join(PATIENCE)
    assert not batcher._thread.is_alive()


def test_closing_in_time_cancels_the_rest(work, make):
    batcher = make()
    busy(work, batcher)
    waiting = batcher.submit(2)
    batcher.close(0.01)
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE)


def test_groups_are_reported(work, make):
    reports = []
    batcher = make(size=lambda item: item, report=lambda *figures: reports.append(figures))
    busy(work, batcher)
    futures = [batcher.submit(number) for number in (2, 4)]
    work.free.set()
    for future in futures:
        future.result(PATIENCE)
    assert [figures[:2] for figures in reports] == [(1, 0), (2, 6)]


def test_many_threads_each_get_their_own_answer(work, make):
    batcher = make(max_waiting=10_000)
    wrong = []

    def ask(start):
        for number in range(start, start + 200):
            if batcher.submit(number).result(PATIENCE) != 2 * number:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not wrong
    assert len(work.calls) < 8 * 200
    assert batcher.waiting == 0


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda items: items[1:], "There are 0 results for 1 items"),
        (lambda items: next(iter(())), "StopIteration"),
        (lambda items: (_ for _ in ()).throw(SystemExit(1)), "SystemExit"),
    ],
)
def test_whatever_fails_reaches_its_caller_and_the_next_is_answered(work, expected):
    fails = threading.Event()
    fails.set()
    batcher = Batcher(
        lambda items: work(items) if fails.is_set() else items, key=lambda _: 0, size=lambda _: 1, max_waiting=9
    )
    with pytest.raises(RuntimeError, match=expected):
        batcher.submit(1).result(PATIENCE)
    fails.clear()
    assert batcher.submit(2).result(PATIENCE) == 2
    batcher.close(PATIENCE)


def test_a_report_that_fails_is_an_error_of_the_call(work, make):
    batcher = make(report=lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(2).result(PATIENCE)
    with pytest.raises(TypeError, match="unhashable"):
        make(key=lambda item: [item]).submit(2)


def test_clients_with_other_options_do_not_count_twice(work, make):
    batcher = make(gather=2 * PATIENCE)  # were it waited out, the results would not come in time
    asked = {number: batcher.submit(number) for number in (2, 3)}
    for _ in range(20):  # each asks again as soon as it is answered, the first before the second is
        for number in (2, 3):
            assert asked[number].result(PATIENCE) == 2 * number
            asked[number] = batcher.submit(number)
    for number in (2, 3):
        assert asked[number].result(PATIENCE) == 2 * number


def test_a_full_batch_does_not_wait(work, make):
    batcher = make(gather=2 * PATIENCE, most=2)
    busy(work, batcher)
    futures = [batcher.submit(number) for number in (2, 4, 6, 8)]
    work.free.set()
    assert [future.result(PATIENCE) for future in futures] == [4, 8, 12, 16]
