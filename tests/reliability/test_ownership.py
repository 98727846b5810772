"""Promise: a folder has one owner at a time; one that is dead locks nobody out."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from transformer_jax.system import UserError, ownership
from transformer_jax.system.files import as_path
from transformer_jax.system.ownership import Ownership, has_live_owner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(ownership, "DEAD_SECONDS", 0.6)
    monkeypatch.setattr(ownership, "SETTLING_SECONDS", 0.01)


def owner_file(folder):
    return json.loads((folder / "owner.json").read_bytes())


def elsewhere(folder, **changes):
    """An owner on another machine."""
    (folder / "owner.json").write_text(json.dumps({**IDENTITY, **changes}))


IDENTITY = {"host": "node7", "machine": "other", "pid": 5, "started": "1", "since": "noon", "token": "t", "beats": 1}


def test_the_second_is_told_who_is_the_first(tmp_path):
    first, second = Ownership(tmp_path / "run"), Ownership(tmp_path / "run")
    first.acquire()
    with pytest.raises(UserError, match=rf"run is in use by process {os.getpid()} on .*, since .*; wait for its end"):
        second.acquire()
    second.release()
    first.check()
    assert owner_file(tmp_path / "run")["pid"] == os.getpid()
    first.release()
    assert not (tmp_path / "run").exists(), "nothing was written"
    second = Ownership(tmp_path / "run")
    second.acquire()
    second.release()


OWN = """
import pathlib, sys, time
from transformer_jax.system.ownership import Ownership
Ownership(pathlib.Path(sys.argv[1])).acquire()
print("owns", flush=True)
time.sleep(600)
"""


def test_a_killed_owner_on_this_machine_is_replaced_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "DEAD_SECONDS", 1e9)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owns\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            Ownership(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not yet reaped
        owner = Ownership(tmp_path)
        owner.acquire()
        owner.release()


def test_an_owner_elsewhere_that_gives_no_sign_of_life_is_replaced(tmp_path):
    elsewhere(tmp_path)
    owner = Ownership(tmp_path)
    owner.acquire()
    owner.check()
    owner.release()


def test_an_owner_elsewhere_that_lives_stays(tmp_path):
    elsewhere(tmp_path)
    timer = threading.Timer(0.2, elsewhere, [tmp_path], {"beats": 2})
    timer.start()
    with pytest.raises(UserError, match="process 5 on node7, since noon"):
        Ownership(tmp_path).acquire()
    timer.join()
    assert owner_file(tmp_path)["beats"] == 2


def test_others_see_whether_the_owner_lives(tmp_path):
    """Without waiting, and without writing."""
    assert not has_live_owner(tmp_path / "none")
    assert not has_live_owner(tmp_path)
    owner = Ownership(tmp_path)
    owner.acquire()
    assert has_live_owner(tmp_path)
    mine = owner_file(tmp_path)
    owner.release()
    (tmp_path / "owner.json").write_text(json.dumps(mine))
    assert not has_live_owner(tmp_path), "this process lives, but has given the folder back"
    (tmp_path / "owner.json").write_text(json.dumps({**mine, "pid": 2**22 + 1}))
    assert not has_live_owner(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


def test_an_owner_elsewhere_is_judged_by_its_last_sign_of_life(tmp_path):
    elsewhere(tmp_path)
    assert has_live_owner(tmp_path)
    before = time.time() - 10 * ownership.DEAD_SECONDS
    os.utime(tmp_path / "owner.json", (before, before))
    assert not has_live_owner(tmp_path)


def test_a_live_owner_in_a_bucket_without_times(bucket):
    folder = as_path("gs://bucket/run")
    assert not has_live_owner(folder)
    owner = Ownership(folder)
    owner.acquire()
    assert has_live_owner(folder)
    owner.release()
    assert not has_live_owner(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_an_unreadable_file_locks_nobody_out(tmp_path, content):
    (tmp_path / "owner.json").write_bytes(content)
    owner = Ownership(tmp_path)
    owner.acquire()
    owner.release()


@pytest.mark.parametrize("kind", ["link to nothing", "link", "folder", "pipe"])
def test_what_is_no_file_is_named(tmp_path, kind):
    path = tmp_path / "owner.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "none" if kind == "link to nothing" else __file__)
    with pytest.raises(UserError, match=r"owner\.json is a link or not a file; delete it\.$"):
        Ownership(tmp_path).acquire()


def test_an_owner_may_release_at_any_moment(tmp_path, monkeypatch):
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.acquire()
    create = Ownership._create

    def create_late(self):
        is_created = create(self)
        first.release()
        return is_created

    monkeypatch.setattr(Ownership, "_create", create_late)
    second.acquire()
    second.release()


def test_whoever_loses_a_folder_finds_out(tmp_path):
    owner = Ownership(tmp_path)
    owner.acquire()
    elsewhere(tmp_path)
    with pytest.raises(UserError, match="was taken over by process 5 on node7"):
        owner.check()
    owner.release()
    assert owner_file(tmp_path)["token"] == "t", "the file of the other stays"


def test_signs_of_life(tmp_path):
    owner = Ownership(tmp_path)
    owner.acquire()
    for _ in range(200):
        if owner_file(tmp_path)["beats"] > 1:
            break
        threading.Event().wait(0.05)
    assert owner_file(tmp_path)["beats"] > 1
    (tmp_path / "owner.json").unlink()
    owner.check()
    assert owner_file(tmp_path)["pid"] == os.getpid()
    owner.release()


def test_a_bucket(bucket):
    first, second = (Ownership(as_path("gs://bucket/run")) for _ in range(2))
    first.acquire()
    with pytest.raises(UserError, match="gs://bucket/run is in use by process"):
        second.acquire()
    first.check()
    first.release()
    assert bucket() == {}


@pytest.mark.parametrize("before", ["none", "killed", "elsewhere"])
def test_of_many_at_once_one_becomes_owner(tmp_path, monkeypatch, before):
    """Even if any of them is held up between finding the former owner dead and taking over."""
    monkeypatch.setattr(ownership, "SETTLING_SECONDS", 0.0)
    watch, moments = Ownership._watch, random.Random(0)

    def watch_and_dawdle(owner):
        found = watch(owner)
        time.sleep(moments.uniform(0.0, 0.1))
        return found

    monkeypatch.setattr(Ownership, "_watch", watch_and_dawdle)
    if before == "elsewhere":
        elsewhere(tmp_path)
    if before == "killed":
        elsewhere(tmp_path, machine=ownership._machine(), pid=2**22 + 1)
    owners, won, refused = [Ownership(tmp_path) for _ in range(8)], [], []

    def try_to(owner):
        try:
            owner.acquire()
            won.append(owner)
        except UserError:
            refused.append(owner)

    threads = [threading.Thread(target=try_to, args=[owner]) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    won[0].check()
    won[0].release()


def test_an_owner_that_was_suspended_leaves_the_next_alone(tmp_path):
    """As by SIGSTOP on another machine: its next sign of life, if any, comes after another has taken over."""
    suspended = Ownership(tmp_path)
    suspended.acquire()
    suspended._stopped.set()
    suspended._thread.join()
    elsewhere(tmp_path)  # the next owner
    suspended._stopped.clear()
    thread = threading.Thread(target=suspended._beat)
    thread.start()
    time.sleep(0.3)
    with pytest.raises(UserError, match="was taken over by process 5 on node7"):
        suspended.check()
    suspended.release()
    thread.join()
    assert owner_file(tmp_path)["token"] == "t"


def test_a_forked_process_does_not_release(tmp_path, monkeypatch):
    owner = Ownership(tmp_path)
    owner.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        owner.release()
    assert owner_file(tmp_path)["pid"] == os.getpid()
    owner.release()
    assert not (tmp_path / "owner.json").exists()


def test_a_full_disk_leaves_no_owner(tmp_path, monkeypatch):
    """The next run would wait for a sign of life of it."""
    monkeypatch.setattr(Ownership, "_content", lambda self: full())

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        Ownership(tmp_path / "run").acquire()
    assert not (tmp_path / "run" / "owner.json").exists()
