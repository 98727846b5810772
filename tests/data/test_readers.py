import gzip

import pytest

from transformer_jax.data.readers import drop_blank_pairs, read_lines, read_pairs
from transformer_jax.system.errors import UserError


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
    assert drop_blank_pairs(pairs) == ([("a", "A")], 2)


def test_pairs_of_different_length(write):
    source, target = write("s.txt", b"a\nb\n"), write("t.txt", b"A\n")
    with pytest.raises(UserError, match=r"s\.txt has 2 lines, but .*t\.txt has 1;"):
        read_pairs(source, target)


def test_real_files(data_dir):
    folder = data_dir / "multi30k"
    pairs = read_pairs(folder / "train.de.gz", folder / "train.en.gz")
    assert len(pairs) == 29_000
    assert pairs[0][1] == "Two young, White males are outside near many bushes."
