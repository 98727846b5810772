"""Fixtures of several of these tests."""

import shutil
import subprocess

import pytest

from tests.reliability import tiny_run
from transformer_jax.tasks.translation import sources as translation


@pytest.fixture
def few_records(monkeypatch):
    monkeypatch.setattr(translation, "load_pairs", tiny_run.load_few)


@pytest.fixture
def small_disk(tmp_path):
    """Folder of a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
