import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from transformer_jax.data import BOS, EOS, PAD
from transformer_jax.data.packing import collate_pairs, real_token_share
from transformer_jax.data.pipeline import Batches, Position, Prefetched, Share
from transformer_jax.data.readers import read_pairs
from transformer_jax.data.tokenizers import train_pair
from transformer_jax.system import UserError


def make_records(count, seed=0, longest=12):
    """Pairs of id lists; the first source id identifies the record."""
    random = np.random.default_rng(seed)
    return [
        (
            [4 + i, *random.integers(4, 90, random.integers(0, longest)).tolist()],
            random.integers(4, 90, random.integers(0, longest)).tolist(),
        )
        for i in range(count)
    ]


def encode(records):
    return [(np.array([*s, EOS], np.int32), np.array([*t, EOS], np.int32)) for s, t in records]


def make_batches(records, **options):
    defaults = {
        "batching": "pack",
        "tokens_per_batch": 64,
        "row_length": 16,
        "bucket_lengths": (4, 8, 16),
        "max_length": 16,
        "seed": 0,
    }
    return Batches(records, encode, collate_pairs, **(defaults | options))


def sentences(batch):
    """The (source, target) id lists of a batch; also checks each of its fields."""
    found = []
    for r in range(len(batch.source)):
        for segment in range(1, batch.source_segments[r].max() + 1):
            at, to = batch.source_segments[r] == segment, batch.target_segments[r] == segment
            source, labels, target = batch.source[r, at], batch.labels[r, to], batch.target[r, to]
            assert source[-1] == labels[-1] == EOS
            assert target.tolist() == [BOS, *labels[:-1]]
            assert batch.source_positions[r, at].tolist() == list(range(len(source)))
            assert batch.target_positions[r, to].tolist() == list(range(len(target)))
            found.append((source[:-1].tolist(), labels[:-1].tolist()))
        for field, segments in zip(batch, [batch.source_segments] * 3 + [batch.target_segments] * 4, strict=True):
            assert (field[r][segments[r] == 0] == PAD).all()
    return found


def take(batches, count, position=None):
    return list(itertools.islice(batches.iterate(position), count))


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_digest_tells_data_apart():
    digests = [make_batches(make_records(50, seed)).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("shuffle", [True, False])
def test_buckets_take_turns_if_batches_are_shuffled(shuffle):
    batches = make_batches(make_records(200), batching="bucket", tokens_per_batch=32, shuffle=shuffle)
    lengths = [batch.source.shape[1] for batch, _ in itertools.islice(batches.iterate(epochs=1), 30)]
    assert len(set(lengths)) > 1
    assert (lengths == sorted(lengths)) is not shuffle


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window_size", [30, 1_000])
def test_an_epoch_holds_every_record_once(batching, shuffle, window_size):
    records = make_records(100)
    batches = make_batches(records, batching=batching, shuffle=shuffle, window_size=window_size)
    found = [pair for batch, _ in batches.iterate(epochs=1) for pair in sentences(batch)]
    assert Counter(map(str, found)) == Counter(map(str, records))
    assert batches.skipped == 0


def test_shapes_are_few():
    records = make_records(100)
    packed = {batch.source.shape for batch, _ in make_batches(records).iterate(epochs=1)}
    assert packed == {(4, 16)}
    bucketed = make_batches(records, batching="bucket").iterate(epochs=1)
    shapes = {field.shape for batch, _ in bucketed for field in batch}
    assert shapes == {(16, 4), (8, 8), (4, 16)}


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize("window_size", [30, 1_000])
def test_resuming_at_any_position_gives_the_same_batches(batching, window_size):
    records = make_records(100)
    options = {"batching": batching, "window_size": window_size}
    reference = take(make_batches(records, **options), 40)
    positions = [Position(), *(position for _, position in reference)]
    assert positions[-1].epoch >= 1
    for start in range(0, 40, 3):
        resumed = take(make_batches(records, **options), 5, positions[start])
        for (batch, after), (expected, expected_after) in zip(resumed, reference[start:], strict=False):
            assert equal(batch, expected)
            assert after == expected_after


def test_order_depends_on_seed_and_epoch():
    records = make_records(100)

    def epoch(number, **options):
        return [
            str(s)
            for b, _ in itertools.islice(make_batches(records, **options).iterate(Position(number)), 4)
            for s in sentences(b)
        ]

    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=1)


def test_batches_of_a_window_are_alike():
    """Packing sorts by length, which must not show in the batches."""
    records = make_records(2_000, longest=14)
    means = [
        np.mean([len(s) for s, _ in sentences(batch)])
        for batch, _ in make_batches(records, tokens_per_batch=512).iterate(epochs=1)
    ]
    assert len(means) > 20
    assert abs(np.corrcoef(means[:-1], np.arange(len(means) - 1))[0, 1]) < 0.5


def test_long_examples_are_left_out_and_counted():
    records = [*make_records(20, longest=6), ([50] * 16, [4]), ([4], [50] * 40)]
    for window_size in (5, 100):
        batches = make_batches(records, window_size=window_size)
        found = [pair for batch, _ in batches.iterate(epochs=1) for pair in sentences(batch)]
        assert len(found) == 20
        assert batches.skipped == 2
        take(batches, 20, Position(1))
        assert batches.skipped == 2
    with pytest.raises(UserError, match=r"All 2 examples .*config\.data\.max_length, 16"):
        take(make_batches(records[20:]), 1)


def test_row_length_follows_max_length():
    records = [([4] * 23, [5] * 10)]
    for batching in ("pack", "bucket"):
        batches = make_batches(records, batching=batching, max_length=24)
        [(batch, _)] = batches.iterate(epochs=1)
        assert batch.source.shape == (2, 24)


@pytest.mark.parametrize("row_multiple", [3, 4, 64])
@pytest.mark.parametrize("batching", ["pack", "bucket"])
def test_rows_divide_evenly(batching, row_multiple):
    """The rows equal those for a single device, followed by the fewest blank rows that make a multiple."""
    records = make_records(100)
    options = {"batching": batching, "tokens_per_batch": 104}
    alone = take(make_batches(records, **options), 30)
    shared = take(make_batches(records, row_multiple=row_multiple, **options), 30)
    for (expected, after_expected), (batch, after) in zip(alone, shared, strict=True):
        rows, length = expected.source.shape
        assert rows == 104 // length
        assert all(field.shape == (rows + -rows % row_multiple, length) for field in batch)
        assert equal([field[:rows] for field in batch], expected)
        assert not any(field[rows:].any() for field in batch)
        assert after == after_expected
    assert len({batch.source.shape for batch, _ in shared}) == (1 if batching == "pack" else 3)


def take_as_one_of(process, processes, gathering, records, **options):
    """Batches of one of several processes (threads here), and the number of records per call of `encode`."""
    encoded = []

    def gather(own):
        gathering.values[process] = own
        gathering.barrier.wait(10)
        values = list(gathering.values)
        gathering.barrier.wait(10)
        return values

    def rows(count):
        return range(process * count // processes, (process + 1) * count // processes)

    def counted(records):
        encoded.append(len(records))
        return encode(records)

    share = Share(process, processes, rows, gather, lambda: None)
    batches = Batches(records, counted, collate_pairs, share=share, **options)
    return take(batches, 40), batches.skipped, encoded


@pytest.mark.parametrize("batching", ["pack", "bucket"])
@pytest.mark.parametrize("window_size", [30, 1_000])
def test_processes_share_rows_and_reading(batching, window_size):
    records = [*make_records(130, longest=15), ([50] * 16, [4])]
    options = {"batching": batching, "tokens_per_batch": 112, "row_length": 16, "bucket_lengths": (4, 8, 16)}
    options |= {"max_length": 16, "row_multiple": 6, "window_size": window_size}
    alone = make_batches(records, **options)
    expected = take(alone, 40)
    gathering = SimpleNamespace(values=[None] * 3, barrier=threading.Barrier(3))
    with ThreadPoolExecutor(3) as threads:
        ways = threads.map(lambda p: take_as_one_of(p, 3, gathering, records, **options), range(3))
        shares, skipped, encoded = zip(*ways, strict=True)
    for (whole, after), *parts in zip(expected, *shares, strict=True):
        assert equal(whole, [np.concatenate(fields) for fields in zip(*(batch for batch, _ in parts), strict=True)])
        assert {position for _, position in parts} == {after}
    assert set(skipped) == {alone.skipped}
    for calls in encoded:
        window = min(window_size, len(records))
        assert calls[0] == pytest.approx(window / 3, abs=1), "to report their lengths"
        assert sum(calls[:2]) < 0.9 * window, "and those of its own rows"


@pytest.mark.parametrize(("batching", "row_length", "least"), [("pack", 20, 20), ("bucket", 20, 16)])
def test_a_batch_too_small_for_a_row_is_refused_before_reading(batching, row_length, least):
    options = {"batching": batching, "row_length": row_length, "row_multiple": 4}
    make_batches(make_records(3), tokens_per_batch=least, **options)
    message = rf"config\.data\.tokens_per_batch is {least - 1}, but a row may take {least} tokens"
    with pytest.raises(UserError, match=message):
        make_batches(make_records(3), tokens_per_batch=least - 1, **options)


def test_invalid_arguments():
    records = make_records(3)
    with pytest.raises(UserError, match=r"config\.data\.batching is 'none'"):
        make_batches(records, batching="none")
    with pytest.raises(UserError, match=r"config\.data\.tokens_per_batch is 10"):
        make_batches(records, tokens_per_batch=10)
    with pytest.raises(UserError, match=r"config\.seed is -1"):
        make_batches(records, seed=-1)
    with pytest.raises(UserError, match="no records"):
        make_batches([])


def test_a_single_window_is_encoded_once():
    calls = []

    def counted(records):
        calls.append(len(records))
        return encode(records)

    options = {"batching": "pack", "tokens_per_batch": 64, "row_length": 16, "bucket_lengths": (16,), "max_length": 16}
    batches = Batches(make_records(30), counted, collate_pairs, **options)
    take(batches, 40)
    assert calls == [30]


def test_padding_of_real_data(data_dir):
    """At most 8 % of the slots of packed Multi30k are padding."""
    folder = data_dir / "multi30k"
    pairs = read_pairs(folder / "train.de.gz", folder / "train.en.gz")
    tokenizers = train_pair("bpe", [s for s, _ in pairs], [t for _, t in pairs], 8_000, joint=True)

    def encode_text(records):
        sides = [
            tokenizers.source.encode_batch([r[0] for r in records]),
            tokenizers.target.encode_batch([r[1] for r in records]),
        ]
        return encode(zip(*sides, strict=True))

    options = {
        "batching": "pack",
        "tokens_per_batch": 2048,
        "row_length": 64,
        "bucket_lengths": (64,),
        "max_length": 64,
    }
    batches = Batches(pairs, encode_text, collate_pairs, **options)
    shares = [real_token_share(batch) for batch, _ in batches.iterate(epochs=1)]
    assert len(shares) > 200
    assert np.mean(shares) >= 0.92
    assert batches.skipped == 0


def test_a_blank_batch_has_the_shape_of_all():
    batches = make_batches(make_records(50))
    blank = batches.blank()
    assert sentences(blank) == []
    assert not any(field.any() for field in (blank.source_segments, blank.target_segments))
    kinds = {tuple((field.shape, field.dtype) for field in batch) for batch, _ in batches.iterate(epochs=1)}
    assert kinds == {tuple((field.shape, field.dtype) for field in blank)}
    assert make_batches(make_records(50), batching="bucket").blank() is None


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_keeps_order_and_ends():
    assert list(Prefetched(iter(range(100)))) == list(range(100))
    assert list(Prefetched(iter([]))) == []
    assert not prefetch_threads()


def test_prefetch_stays_ahead_by_depth():
    produced, ahead = [], threading.Event()

    def produce():
        for i in range(100):
            produced.append(i)
            if i == 4:
                ahead.set()
            yield i

    stream = Prefetched(produce(), depth=3)
    assert next(stream) == 0
    assert ahead.wait(5), "one taken, three queued, one in hand"
    assert len(produced) == 5
    stream.close()
    assert not prefetch_threads()


def test_prefetch_starts_before_the_first_request():
    began = threading.Event()

    def produce():
        began.set()
        yield 1

    stream = Prefetched(produce())
    assert began.wait(5)
    stream.close()
    assert list(stream) == []
    assert not prefetch_threads()


def test_prefetch_raises_in_turn():
    def fail():
        yield 1
        raise UserError("broken")

    stream = Prefetched(fail())
    assert next(stream) == 1
    with pytest.raises(UserError, match="broken"):
        next(stream)
    assert not prefetch_threads()
