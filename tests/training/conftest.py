"""What tests of whole runs share: compiled programs."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
    """Every run jits its own step; all but the first find it compiled on the disk."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
