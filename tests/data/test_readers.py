import gzip
import random
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from transformer_jax.data.readers import (
    MappedRecords,
    apart_from,
    cut,
    find_file,
    is_held_out,
    read_lines,
    read_pair_table,
    read_pairs,
    read_records,
    spread_evenly,
    text_pairs,
)
from transformer_jax.system import UserError

TEXTS = [f"text {i}" for i in range(20_000)]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_lines_end_at_newlines_only(write):
    text = "eins\r\nzwei\u2028\x0bzwei\n\n  \nfünf\x85"
    assert read_lines(write("a.txt", text.encode())) == ["eins", "zwei\u2028\x0bzwei", "", "  ", "fünf\x85"]


@pytest.mark.parametrize(
    ("content", "lines"), [(b"", []), (b"\n", [""]), (b"a", ["a"]), (b"a\n", ["a"]), (b"a\n\n", ["a", ""])]
)
def test_last_newline_ends_a_line(write, content, lines):
    assert read_lines(write("a.txt", content)) == lines


def test_byte_order_mark_is_dropped(write):
    assert read_lines(write("a.txt", b"\xef\xbb\xbfeins\n")) == ["eins"]


def test_gzip_is_known_by_its_content(write):
    content = "äöü\nß\n".encode()
    assert read_lines(write("plain_name.txt", gzip.compress(content))) == ["äöü", "ß"]
    assert read_lines(write("misnamed.gz", content)) == ["äöü", "ß"]


def test_malformed_utf8_names_line_and_byte(write):
    path = write("bad.txt", b"good\nalso good\nab\xffcd\n")
    with pytest.raises(UserError, match=r"bad\.txt, line 3, byte 3 \(0xff\)"):
        read_lines(path)
    with pytest.raises(UserError, match=r"line 1, byte 1 "):
        read_lines(write("first.txt", b"\xe4bc"))


@pytest.mark.parametrize("keep", [5, 20, -3])
def test_truncated_gzip(write, keep):
    path = write("cut.gz", gzip.compress(bytes(range(32, 126)) * 20)[:keep])
    with pytest.raises(UserError, match=r"cut\.gz is a damaged or truncated gzip file"):
        read_lines(path)


def test_unreadable_paths(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt cannot be read, the file does not exist"):
        read_lines(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"none\.txt cannot be read, its folder does not exist"):
        read_lines(tmp_path / "nowhere" / "none.txt")
    with pytest.raises(UserError, match="directory"):
        read_lines(tmp_path)


def test_pairs(write):
    source, target = write("s.txt", b"a\n\nc\n"), write("t.txt", b"A\nB\n \n")
    pairs = read_pairs(source, target)
    assert pairs == [("a", "A"), ("", "B"), ("c", " ")]


def test_pairs_of_different_length(write):
    source, target = write("s.txt", b"a\nb\n"), write("t.txt", b"A\n")
    with pytest.raises(UserError, match=r"s\.txt has 2 lines, but .*t\.txt has 1;"):
        read_pairs(source, target)


def test_pairs_of_one_table(write):
    """Columns are tab-separated; quotes mean nothing, and further columns are ignored."""
    path = write("pairs.tsv", 'a "b\tÄ\tfrom x\nc\t\n \n'.encode())
    assert read_pair_table(path) == [('a "b', "Ä"), ("c", ""), ("", "")]
    assert read_pair_table(path, (2, 1)) == [("Ä", 'a "b'), ("", "c"), ("", "")]
    with pytest.raises(UserError, match=r"pairs\.tsv, line 2 has 2 tab-separated columns, .* columns 1 and 3"):
        read_pair_table(path, (1, 3))


class Files(NamedTuple):
    """Fields of a `DataConfig`."""

    train_file: str = ""
    train_source: str = ""
    train_target: str = ""
    validation_file: str = ""
    validation_source: str = ""
    validation_target: str = ""
    source_column: int = 1
    target_column: int = 2


def test_text_pairs_come_from_one_file_or_two(write):
    table, source, target = write("p.tsv", b"A\ta\n"), write("s.txt", b"a\n"), write("t.txt", b"A\n")
    one = Files(train_file=str(table), source_column=2, target_column=1)
    two = Files(train_source=str(source), train_target=str(target))
    for files in (one, two):
        assert text_pairs(files, "train", ("line", "line")) == [("a", "A")]
        with pytest.raises(UserError, match=r"validation_source is empty; .*data\.validation_split=''"):
            text_pairs(files, "validation", ("line", "line"))
    with pytest.raises(UserError, match="both train_file and two files, train_source and train_target; drop one"):
        text_pairs(two._replace(train_file="x.tsv"), "train", ("line", "line"))
    with pytest.raises(UserError, match="no split 'test', only train, validation"):
        text_pairs(two, "test", ("line", "line"))


def test_real_files(data_dir):
    folder = data_dir / "multi30k"
    pairs = read_pairs(folder / "train.de.gz", folder / "train.en.gz")
    assert len(pairs) == 29_000
    assert pairs[0][1] == "Two young, White males are outside near many bushes."


def test_gzip_is_found_before_plain(tmp_path):
    assert find_file(tmp_path, "a.txt") is None
    (tmp_path / "a.txt").touch()
    assert find_file(tmp_path, "a.txt") == tmp_path / "a.txt"
    (tmp_path / "a.txt.gz").touch()
    assert find_file(tmp_path, "a.txt") == tmp_path / "a.txt.gz"


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        find_file(tmp_path, "a" * 300)


class Source(Sequence):
    """A sequence of its own indices that counts its reads."""

    def __init__(self):
        self.single, self.many = 0, 0

    def __len__(self):
        return 3_000

    def __getitem__(self, index):
        self.single += 1
        return index

    def __getitems__(self, indices):
        self.many += 1
        return list(indices)


def test_records_are_read_in_bulk_where_possible():
    source = Source()
    assert read_records(source, [5, 3]) == [5, 3]
    assert (source.single, source.many) == (0, 1)
    assert read_records("abc", [2, 0]) == ["c", "a"]


def test_mapped():
    source = Source()
    mapped = MappedRecords(source, str)
    assert list(mapped) == [str(i) for i in range(3_000)]
    assert (source.single, source.many) == (0, 3)
    assert mapped[7] == "7"
    assert mapped[-1] == "2999"
    assert mapped[10:16:2] == ["10", "12", "14"]
    assert read_records(mapped, [4, 1]) == ["4", "1"]


@pytest.mark.parametrize(
    ("most", "chosen"),
    [(1, [0]), (3, [0, 4, 8]), (5, [0, 2, 4, 6, 8]), (9, [0, 2, 4, 6, 8]), (10, range(10)), (99, range(10))],
)
def test_records_spread_evenly(most, chosen):
    assert spread_evenly(range(10), most) == list(chosen)


def test_held_out_texts_are_the_same_on_every_machine():
    # `printf text | b2sum -l 64` prints d7f35fa228381a1c, which is 0.84356 of 2**64.
    assert is_held_out("text", 84.356)
    assert not is_held_out("text", 84.355)


@pytest.mark.parametrize("percent", [0.3, 5.0, 50.0])
def test_the_held_out_share(percent):
    count = sum(is_held_out(text, percent) for text in TEXTS)
    expected = len(TEXTS) * percent / 100
    assert abs(count - expected) < 4 * expected**0.5


def test_bounds_and_growth():
    assert not any(is_held_out(text, 0.0) for text in TEXTS)
    assert all(is_held_out(text, 100.0) for text in TEXTS)
    assert all(is_held_out(text, 10.0) for text in TEXTS if is_held_out(text, 5.0))


def test_odd_texts():
    assert [is_held_out(text, 100.0) for text in ("", "花", "\ud800")] == [True] * 3


def test_a_cut_that_leaves_a_part_empty():
    with pytest.raises(UserError, match=r"validation_percent is 1e-09, which holds out none of 20,000 records; raise"):
        cut(TEXTS, str, 1e-9)
    with pytest.raises(UserError, match=r"validation_percent is 99\.9999, which holds out all of 5 records; lower it"):
        cut(TEXTS[:5], str, 99.9999)
    assert cut([], str, 5.0) == ([], [])


def test_cut_keeps_equal_keys_together_and_the_order():
    rng = random.Random(0)
    records = [(f"key {rng.randrange(200)}", i) for i in range(2_000)]
    kept, held_out = cut(records, lambda record: record[0], 20.0)
    assert sorted(kept + held_out, key=lambda record: record[1]) == records
    assert {key for key, _ in kept}.isdisjoint(key for key, _ in held_out)
    assert all(part == sorted(part, key=lambda record: record[1]) for part in (kept, held_out))
    assert 20 < len({key for key, _ in held_out}) < 65


def test_extra_records_exclude_held_out_keys():
    held_out = [("a", 1), ("b", 2)]
    records = [("b", 3), ("c", 4), ("a", 5), ("d", 6), ("c", 7)]
    assert apart_from(held_out, records, lambda record: record[0]) == [("c", 4), ("d", 6), ("c", 7)]
