import hashlib
import json
import os
from pathlib import Path

import pytest

from transformer_jax.system import UserError
from transformer_jax.system.files import (
    NO_CHECKSUMS,
    find_damage,
    new_folder,
    replace_folder,
    sha256,
    write_atomically,
    write_checksums,
)

OLD, NEW = {"a": b"old", "b": b"only the old has it"}, {"a": b"new\x00\xff", "c": b""}


def fail(*arguments, **options):
    raise OSError("disk full")


def contents(folder):
    """Of all files below, hidden ones too: litter would show."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail_at_call(monkeypatch, owner, name, number):
    """Let the call with that number, from 1, fail, and count the calls."""
    calls, real = [], getattr(owner, name)

    def sometimes(*arguments, **options):
        calls.append(arguments)
        return fail() if len(calls) == number else real(*arguments, **options)

    monkeypatch.setattr(owner, name, sometimes)
    return calls


@pytest.mark.parametrize("content", [b"", b"new\r\n\x00\xff", bytes(100_000)])
@pytest.mark.parametrize("before", [{}, {"file": b"old"}], ids=["fresh", "replaced"])
def test_a_file_is_written_or_replaced(tmp_path, before, content):
    for name, old in before.items():
        (tmp_path / name).write_bytes(old)
    write_atomically(tmp_path / "file", content)
    assert contents(tmp_path) == {"file": content}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("before", [{}, {"file": b"old"}], ids=["fresh", "replaced"])
def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch, before, call):
    for name, old in before.items():
        (tmp_path / name).write_bytes(old)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", b"new")
    assert contents(tmp_path) == before


def test_a_file_is_on_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    """Else a crash of the machine could leave the new name with no content."""
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (order.append(name), real(*a))[1])
    write_atomically(tmp_path / "file", b"new")
    assert order[:2] == ["fsync", "replace"]


def test_a_file_in_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "file", b"new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [None, OLD], ids=["fresh", "replaced"])
def test_a_folder_is_written_or_replaced(tmp_path, before):
    folder = tmp_path / "parent" / "folder"
    if before is not None:
        replace_folder(folder, before)
        assert contents(tmp_path) == {f"parent/folder/{name}": content for name, content in before.items()}
    replace_folder(folder, NEW)
    assert contents(tmp_path) == {f"parent/folder/{name}": content for name, content in NEW.items()}
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [(os, "fsync", 1), (os, "fsync", 2), (os, "fsync", 3), (Path, "rename", 1), (Path, "rename", 2)],
    ids=["first file", "second file", "new folder", "old makes way", "new takes its place"],
)
def test_a_folder_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch, owner, name, number):
    folder = tmp_path / "folder"
    replace_folder(folder, OLD)
    calls = fail_at_call(monkeypatch, owner, name, number)
    with pytest.raises(OSError, match="disk full"):
        replace_folder(folder, NEW)
    assert len(calls) >= number
    assert contents(folder) == OLD
    assert list(tmp_path.iterdir()) == [folder]


def test_a_fresh_folder_that_cannot_be_written_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_folder(tmp_path / "folder", NEW)
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "deep" / "new") as folder:
        (folder / "a").write_bytes(b"a")
        assert not (tmp_path / "deep" / "new").exists()
    assert contents(tmp_path) == {"deep/new/a": b"a"}


def test_a_new_folder_does_not_appear_after_an_error(tmp_path):
    def fill():
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_bytes(b"a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder", "link to nothing"])
def test_a_new_folder_replaces_nothing(tmp_path, kind):
    path = tmp_path / "there"
    if kind == "file":
        path.write_bytes(b"old")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="there exists; name a folder that does not"), new_folder(path):
        raise AssertionError
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_a_new_folder_needs_a_name():
    with pytest.raises(UserError, match="empty name"), new_folder(""):
        raise AssertionError


def test_a_new_folder_where_none_can_be(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "deep" / "new"):
        with pytest.raises(UserError, match=r"new cannot be written, for .*/file is not a folder"), new_folder(path):
            raise AssertionError
    assert contents(tmp_path) == {"file": b""}


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError])
def test_a_new_folder_that_fails_leaves_none_above(tmp_path, error):
    (tmp_path / "empty").mkdir()
    with pytest.raises((error, UserError)), new_folder(tmp_path / "empty" / "deep" / "deeper" / "new"):
        raise error
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


@pytest.fixture
def summed(tmp_path):
    (tmp_path / "inner" / "deep").mkdir(parents=True)
    for name in ("a", "inner/b[1]*", "inner/deep/c"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    (tmp_path / "empty").write_bytes(b"")
    write_checksums(tmp_path)
    return tmp_path


def test_files_with_checksums_are_sound(summed):
    assert find_damage(summed) is None
    (summed / "later").write_bytes(b"ignored")
    assert find_damage(summed) is None
    assert sha256(summed / "empty") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("name", ["a", "empty", "inner/b[1]*", "inner/deep/c", "checksums.json"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "grow"])
def test_damage_is_named(summed, name, damage):
    content = bytearray((summed / name).read_bytes())
    if damage == "delete":
        (summed / name).unlink()
    elif damage == "truncate" and content:
        (summed / name).write_bytes(content[: len(content) // 2])
    elif damage == "flip" and content:
        content[len(content) // 2] ^= 1
        (summed / name).write_bytes(content)
    else:
        (summed / name).write_bytes(bytes(content) + b"x")
    if (name, damage) == ("checksums.json", "delete"):
        assert find_damage(summed) == NO_CHECKSUMS
    elif name == "checksums.json":
        assert find_damage(summed) is not None
    else:
        assert find_damage(summed).startswith(f"{name} ")


@pytest.mark.parametrize("entry", ["link", "link to a folder", "link to itself", "pipe"])
def test_what_is_no_file_is_damage(summed, tmp_path_factory, entry):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = summed / "inner" / "strange"
    if entry == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": summed / "a", "link to a folder": elsewhere, "link to itself": path}[entry])
    assert find_damage(summed) == "inner/strange is a link or not a file"


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_checksum_of_what_cannot_be_a_file_is_damage(summed, name):
    (summed / "checksums.json").write_text(json.dumps({name: ""}))
    assert find_damage(summed) == "checksums.json has a name that no file can have"


@pytest.mark.parametrize("name", ["../a", "/dev/zero", "inner/../../a"])
def test_no_checksum_is_computed_outside_of_the_folder(summed, name):
    (summed / "checksums.json").write_text(json.dumps({name: ""}))
    assert find_damage(summed) == "checksums.json names a file outside of its folder"
