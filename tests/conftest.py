"""Setup of all tests: eight CPU devices, annotations checked at run time, and fixtures for real data and for gs://."""

import gc
import importlib
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

XLA_FLAGS = [
    # Simulate eight devices on one CPU, to test sharding anywhere.
    "--xla_force_host_platform_device_count=8",
    # Tests compile a lot and compute little, so compile time matters more than run time.
    "--xla_backend_optimization_level=0",
]
# Later releases end the process at this flag, which they do not know.
if importlib.metadata.version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10.")):
    XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# Caches compiled programs for other tests and processes: the workers of xdist share that of the process they belong to.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"] if IS_WORKER else tempfile.mkdtemp(prefix="transformer_jax-")


def pytest_collection_finish(session):
    # Imported modules and collected tests stay: looking through them again and again takes a tenth of the time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def pytest_unconfigure(config):
    # Not at exit, which processes killed by xdist never reach.
    if not IS_WORKER:
        shutil.rmtree(COMPILED, ignore_errors=True)


# JAX reads these when first imported; subprocesses of tests inherit them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Set here, so that tests of commands do not change memory allocation in other tests.
os.environ.setdefault("MALLOC_ARENA_MAX", "8")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *XLA_FLAGS)).strip()

install_import_hook("transformer_jax", "beartype.beartype")

MANY_MAPS = 20_000
"""Of 65,530 that a Linux process may have; a module of tests adds up to half as many."""

_REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real data sets: `TRANSFORMER_JAX_DATA`, else `../shared/data` beside the repository."""
    folder = Path(os.environ.get("TRANSFORMER_JAX_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} with real data does not exist; set TRANSFORMER_JAX_DATA to a folder that has it")
    return folder


def _memory_maps():
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MANY_MAPS


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Free compiled programs once there are many, since Linux limits the number of memory maps per process."""
    yield
    if _memory_maps() >= MANY_MAPS:
        import jax  # only after the variables above are set

        jax.clear_caches()


@pytest.fixture
def bucket(monkeypatch):
    """An in-memory `gs://bucket`; the value is a function that returns its objects by name, `bucket/...`."""
    from tests.bucket import Bucket, objects

    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gcs", Bucket)
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "broken", None)
    Bucket.clear_instance_cache()
    yield objects
    Bucket.clear_instance_cache()
