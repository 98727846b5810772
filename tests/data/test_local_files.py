import io
import urllib.error

import pytest

from transformer_jax.data.readers import check_network, checked_folder, find_file, fingerprint
from transformer_jax.system.errors import UserError


def test_folder(tmp_path):
    assert checked_folder(str(tmp_path), "Any set") == tmp_path
    with pytest.raises(UserError, match=r"config\.data\.manual_dir is .*nowhere, which is no folder.* Any set's files"):
        checked_folder(tmp_path / "nowhere", "Any set")


def test_gzip_is_found_before_plain(tmp_path):
    assert find_file(tmp_path, "a.txt") is None
    (tmp_path / "a.txt").touch()
    assert find_file(tmp_path, "a.txt") == tmp_path / "a.txt"
    (tmp_path / "a.txt.gz").touch()
    assert find_file(tmp_path, "a.txt") == tmp_path / "a.txt.gz"


def test_fingerprint_tells_contents_apart(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    first = fingerprint({"train": (one, two)})
    assert fingerprint({"train": (one, two)}) == first
    assert fingerprint({"test": (two,), "train": (one,)}) == fingerprint({"train": (one,), "test": (two,)})
    others = {
        fingerprint(files)
        for files in ({"train": (two, one)}, {"test": (one, two)}, {"train": (one,)}, {"train": (one,), "test": (two,)})
    }
    two.write_text("c")
    assert len({first, *others, fingerprint({"train": (one, two)})}) == 6


def test_what_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
        fingerprint({"train": (tmp_path,)})
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        find_file(tmp_path, "a" * 300)


def test_a_server_that_refuses_is_there(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 405, "Method Not Allowed", None, io.BytesIO())

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    check_network("http://127.0.0.1/x", "Any set")


def test_no_network():
    # Port 9 of this machine: nobody listens there.
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/x cannot be reached .*Any set's files in config\.data"):
        check_network("http://127.0.0.1:9/x", "Any set")
