"""What every test needs: eight CPU devices, annotations checked at run time, and the folder of real data."""

import importlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

XLA_FLAGS = (
    # Eight devices on one CPU make sharding testable anywhere.
    "--xla_force_host_platform_device_count=8",
    # Tests compile much and compute little: code that is quick to make beats code that is quick.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)

# What is compiled again, be it by another function or in another process, is found on the disk.
COMPILED = tempfile.mkdtemp(prefix="transformer_jax-")


def pytest_unconfigure(config):
    # At exit would be too late for processes that xdist kills.
    shutil.rmtree(COMPILED, ignore_errors=True)


# All are read when JAX is first imported; subprocesses of tests inherit them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_PLATFORMS"] = "cpu"
# No test that runs a command changes how memory is allocated in the others.
os.environ.setdefault("MALLOC_ARENA_MAX", "8")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS)).strip()

install_import_hook("transformer_jax", "beartype.beartype")

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets: `TRANSFORMER_JAX_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TRANSFORMER_JAX_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} of real data; set TRANSFORMER_JAX_DATA to one that has it")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Compiled programs leave the memory with the module that they are of: a process may map only so many."""
    yield
    import jax  # not before the variables above are set

    jax.clear_caches()


@pytest.fixture
def bucket(monkeypatch):
    """`gs://bucket/...` within a test; gives a function that tells the objects by name, `bucket/...`."""
    from tests.bucket import Bucket, objects

    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gcs", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "broken", None)
    Bucket.clear_instance_cache()
    yield objects
    Bucket.clear_instance_cache()
