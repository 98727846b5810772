import threading

import pytest

from tests.bucket import Bucket
from transformer_jax.system import UserError
from transformer_jax.system.files import as_path
from transformer_jax.training.mirror import Mirror


def append(mirror, name, text):
    path = mirror.local / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def test_a_local_folder_is_written_to_as_it_is(tmp_path):
    mirror = Mirror(tmp_path / "a" / "b", ["log"])
    assert mirror.local == tmp_path / "a" / "b"
    append(mirror, "log", "one\n")
    mirror.push()
    mirror.flush()
    mirror.close()
    assert (tmp_path / "a" / "b" / "log").read_text() == "one\n"


def test_files_grow_and_come_with_their_folders(bucket):
    mirror = Mirror(as_path("gs://bucket/run"))
    append(mirror, "log", "one\n")
    append(mirror, "below/events", "e")
    mirror.flush()
    assert bucket() == {"bucket/run/log": b"one\n", "bucket/run/below/events": b"e"}
    append(mirror, "log", "two\n")
    mirror.close()
    assert bucket()["bucket/run/log"] == b"one\ntwo\n"
    assert not mirror.local.exists()
    mirror.close()  # again does nothing


def test_what_is_pushed_is_copied_meanwhile(bucket, monkeypatch):
    copied, write = threading.Event(), Bucket._open

    def tell(self, path, mode="rb", **options):
        if "w" in mode:
            copied.set()
        return write(self, path, mode, **options)

    monkeypatch.setattr(Bucket, "_open", tell)
    mirror = Mirror(as_path("gs://bucket/run"))
    append(mirror, "log", "one\n")
    mirror.push()
    assert copied.wait(30)
    mirror.close()


def test_only_what_has_changed_is_copied(bucket, monkeypatch):
    written, write = [], Bucket._open
    monkeypatch.setattr(
        Bucket, "_open", lambda self, path, *a, **o: (written.append(path), write(self, path, *a, **o))[1]
    )
    mirror = Mirror(as_path("gs://bucket/run"))
    append(mirror, "a", "1")
    append(mirror, "b", "1")
    mirror.flush()
    append(mirror, "b", "2")
    mirror.close()
    assert [path.rpartition("/")[2] for path in written] == ["a", "b", "b"]


def test_files_that_are_gone_on_with_are_fetched(bucket):
    as_path("gs://bucket/run/log").write_bytes(b"one\n")
    mirror = Mirror(as_path("gs://bucket/run"), ["log", "none"])
    append(mirror, "log", "two\n")
    mirror.close()
    assert bucket() == {"bucket/run/log": b"one\ntwo\n"}


@pytest.mark.parametrize("folder", ["run", "gs://bucket/run"])
def test_a_file_that_is_written_is_there(bucket, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    mirror = Mirror(as_path(folder))
    for content in (b"one", b"two"):
        mirror.write("note", content)
        assert (as_path(folder) / "note").read_bytes() == (mirror.local / "note").read_bytes() == content
    mirror.close()
    assert (as_path(folder) / "note").read_bytes() == b"two"


def test_a_file_that_cannot_be_written_stays_as_it_was(bucket):
    mirror = Mirror(as_path("gs://bucket/run"))
    mirror.write("note", b"one")
    Bucket.broken = RuntimeError("no network")
    with pytest.raises(OSError, match="no network"):
        mirror.write("note", b"two")
    Bucket.broken = None
    mirror.close()
    assert bucket() == {"bucket/run/note": b"one"}


@pytest.mark.parametrize("folder", ["run", "gs://bucket/run"])
def test_files_are_removed_by_pattern(bucket, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    mirror = Mirror(as_path(folder))
    for name in ("events/a.1", "events/a.2", "events/b", "a.3"):
        append(mirror, name, name)
    mirror.flush()
    mirror.remove("events/a.*")
    mirror.remove("none/*")
    mirror.close()
    left = [name for name in ("events/a.1", "events/a.2", "events/b", "a.3") if (as_path(folder) / name).exists()]
    assert left == ["events/b", "a.3"]


def test_what_cannot_be_removed_stays(bucket):
    as_path("gs://bucket/run/a").write_bytes(b"one")
    mirror = Mirror(as_path("gs://bucket/run"))
    Bucket.broken = RuntimeError("no network")
    mirror.remove("a")
    Bucket.broken = None
    mirror.close()
    assert bucket() == {"bucket/run/a": b"one"}


def test_a_failure_is_made_good_later(bucket):
    mirror = Mirror(as_path("gs://bucket/run"))
    append(mirror, "log", "one\n")
    Bucket.broken = RuntimeError("no network")
    mirror.flush()
    assert bucket() == {}
    Bucket.broken = None
    mirror.close()
    assert bucket() == {"bucket/run/log": b"one\n"}


def test_in_the_end_a_failure_is_told_and_nothing_is_lost(bucket):
    mirror = Mirror(as_path("gs://bucket/run"))
    append(mirror, "log", "one\n")
    Bucket.broken = RuntimeError("no network")
    with pytest.raises(
        UserError, match=rf"gs://bucket/run can't be written \(no network\); copy the files of {mirror.local}"
    ):
        mirror.close()
    assert (mirror.local / "log").read_text() == "one\n"


def test_a_folder_that_cannot_be_read_is_named(bucket):
    Bucket.broken = RuntimeError("no credentials")
    with pytest.raises(UserError, match=r"gs://bucket/run can't be read \(no credentials\); choose another"):
        Mirror(as_path("gs://bucket/run"), ["log"])
