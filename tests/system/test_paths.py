from pathlib import Path

import pytest
from etils import epath

from tests.bucket import Bucket
from transformer_jax.system import UserError
from transformer_jax.system.files import (
    as_path,
    is_remote,
    new_folder,
    os_errors,
    replace_folder,
    resolved,
    write_atomically,
)


@pytest.mark.parametrize("path", ["runs/a", "/runs/a", "a:/b", Path("runs"), epath.Path("/runs")])
def test_a_local_path_is_one_of_pathlib(path):
    assert as_path(path) == Path(path)
    assert not is_remote(as_path(path))


def test_a_remote_path(bucket):
    path = as_path("gs://bucket/runs") / "a"
    assert str(path) == "gs://bucket/runs/a"
    assert is_remote(path)
    assert as_path(path) == path


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match="is empty; name one"):
        as_path("")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "~\0"])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(UserError, match=r"^'[a~]?\\.* can't be the name of a file or folder; name another\.$"):
        as_path(name)


@pytest.mark.parametrize("path", ["s3://bucket/a", "http://host/a", "://"])
def test_other_storage_is_refused(path):
    with pytest.raises(UserError, match=r"is a path of an unknown kind; name a local one, or gs://"):
        as_path(path)


def test_without_the_package_for_it_a_command_is_named(monkeypatch):
    def missing(name):
        raise ImportError

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"gs://b/a needs another package; run pip install 'transformer-jax\[gcs\]'"):
        as_path("gs://b/a")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("HTTP 401\n  log in"), "HTTP 401 log in"),
        (ValueError(), "ValueError"),
        (OSError("Forbidden"), "Forbidden"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_what_a_client_raises_is_an_os_error_with_a_reason(bucket, error, reason):
    with pytest.raises(OSError, match=reason) as raised, os_errors(as_path("gs://bucket/a")):
        raise error
    assert raised.value.strerror == reason


def test_errors_of_their_own_kind_stay(bucket):
    with pytest.raises(FileNotFoundError), os_errors(as_path("gs://bucket/a")):
        as_path("gs://bucket/a").read_bytes()
    with pytest.raises(UserError, match="mine"), os_errors(as_path("gs://bucket/a")):
        raise UserError("mine")
    with pytest.raises(RuntimeError), os_errors(Path("a")):
        raise RuntimeError


def test_only_local_paths_are_resolved(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("there")
    assert resolved(Path("link")) == tmp_path / "there"
    assert resolved(as_path("gs://bucket/a")) == as_path("gs://bucket/a")


def test_files_and_folders_are_written_and_replaced(bucket):
    write_atomically(as_path("gs://bucket/a/file"), b"old")
    write_atomically(as_path("gs://bucket/a/file"), b"new")
    replace_folder(as_path("gs://bucket/a/folder"), {"x": b"1", "y": b"2"})
    replace_folder(as_path("gs://bucket/a/folder"), {"y": b"3", "z": b"4"})
    assert bucket() == {"bucket/a/file": b"new", "bucket/a/folder/y": b"3", "bucket/a/folder/z": b"4"}


def test_what_cannot_be_written_says_why(bucket):
    Bucket.broken = RuntimeError("no credentials")
    with pytest.raises(OSError, match="no credentials"):
        write_atomically(as_path("gs://bucket/a"), b"")


def test_a_new_folder_is_local(bucket):
    with pytest.raises(UserError, match=r"gs://bucket/out is not on this machine"), new_folder("gs://bucket/out"):
        raise AssertionError
    assert bucket() == {}
