import os
import subprocess
import sys

import pytest

from transformer_jax.system import runtime

VARIABLES = (
    "GLIBC_TUNABLES",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    "JAX_PLATFORMS",
    "LD_PRELOAD",
    "XLA_FLAGS",
)


class Libc:
    """Remembers what malloc is parameters instead of telling it."""

    def __init__(self):
        self.parameters, self.refused = [], ()

    def mallopt(self, number, value):
        self.parameters.append((number, value))
        return int(number not in self.refused)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a new process with a home of its own, and as if JAX were not imported."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delitem(sys.modules, "jax")
    libc = Libc()
    monkeypatch.setattr(runtime, "_libc", lambda: libc)
    monkeypatch.setattr(runtime.platform, "libc_ver", lambda: ("glibc", "2.36"))
    # What `prepare` sets is taken back at the end.
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if name != "JAX_PLATFORMS":
            del os.environ[name]
    return libc


def test_programs_are_kept_where_nobody_else_can_write(fresh, tmp_path):
    lines = runtime.prepare()
    folder = tmp_path / "cache" / "transformer_jax" / "compiled"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == runtime.CACHE_BYTES
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert f"Compiled programs are kept in {folder}" in lines
    assert runtime.prepare() == lines, "and the second time the same"


@pytest.mark.parametrize("spoil", ["mode", "readable", "link", "file", "parent", "root", "owner"])
def test_no_programs_where_others_can_write(fresh, tmp_path, monkeypatch, spoil):
    folder = tmp_path / "cache" / "transformer_jax" / "compiled"
    folder.parent.mkdir(parents=True, mode=0o700)
    if spoil == "mode":
        folder.mkdir()
        folder.chmod(0o770)
    elif spoil == "readable":
        folder.mkdir()
        folder.chmod(0o755)
    elif spoil == "root":
        folder.parent.parent.chmod(0o777)
    elif spoil == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif spoil == "file":
        folder.write_text("")
    elif spoil == "parent":
        folder.parent.chmod(0o777)
    else:
        own = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: own + 1)
    (line,) = [line for line in runtime.prepare() if "programs" in line]
    assert line.startswith("Compiled programs are not kept: ")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_nothing_is_kept_where_nothing_can_be_written(fresh, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert any("not kept: " in line for line in runtime.prepare())
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_what_the_user_chose_stays(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", "--xla_two=9 --xla_three=3")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/there")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    lines = runtime.prepare()
    assert os.environ["XLA_FLAGS"] == "--xla_two=9 --xla_three=3"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/there"
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "7"
    assert "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ
    assert fresh.parameters == []
    assert lines == [f"XLA flags: {os.environ['XLA_FLAGS']}", "Compiled programs are kept in /there"]
    assert not (tmp_path / "cache").exists()


def test_the_cache_can_be_switched_off(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert "Compiled programs are not kept, as JAX_ENABLE_COMPILATION_CACHE says" in runtime.prepare()
    assert not (tmp_path / "cache").exists()


def test_memory_is_kept_on_the_processor_only(fresh, monkeypatch):
    assert "Freed memory is kept for the next step" in runtime.prepare()
    assert (-8, 1) in fresh.parameters
    assert len(fresh.parameters) == 3
    monkeypatch.setenv("JAX_PLATFORMS", "gpu,cpu")
    assert "Freed memory is kept for the next step" not in runtime.prepare()
    assert len(fresh.parameters) == 3


def test_an_allocator_that_refuses_the_first_is_parameters_nothing_more(fresh):
    fresh.refused = (-3,)
    assert not any("memory" in line for line in runtime.prepare())
    assert len(fresh.parameters) == 1


def test_a_relative_folder_of_caches_is_none(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    runtime.prepare()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / ".cache" / "transformer_jax" / "compiled")


@pytest.mark.parametrize(
    ("installed", "device", "expected"),
    [
        ((), True, "cpu"),
        (("libtpu",), False, "tpu"),
        (("jax_cuda13_plugin",), True, "cuda"),
        (("jax_cuda12_plugin",), False, "cpu"),
    ],
)
def test_the_platform_is_known_before_jax_starts(fresh, monkeypatch, installed, device, expected):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(runtime.Path, "exists", lambda path: device)
    assert runtime._platform() == expected


def test_a_process_finds_what_another_compiled(tmp_path):
    program = (
        "from transformer_jax.system import runtime; lines = runtime.prepare()\n"
        "import jax\n"
        "events = []\n"
        "jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))\n"
        "jax.monitoring.register_event_listener(lambda event, **_: events.append(event))\n"
        "jax.jit(lambda x: x + 1)(1.0)\n"
        "names = '/jax/core/compile/backend_compile_duration', '/jax/compilation_cache/cache_hits'\n"
        "print(*map(events.count, names))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    outputs = [subprocess.run(command, env=environment, check=True, capture_output=True, text=True) for _ in range(2)]
    assert [output.stdout.split() for output in outputs] == [["1", "0"], ["1", "1"]]
    assert [output.stderr for output in outputs] == ["", ""]
