import dataclasses
import subprocess
import sys

import pytest

from transformer_jax.config import Config, config_from_dict, default_config, from_config_dict
from transformer_jax.system import UserError
from transformer_jax.task_groups import add_group
from transformer_jax.tasks import registry
from transformer_jax.tasks.registry import REGISTRY, lower_is_better, register_task, registered, registered_names
from transformer_jax.tasks.translation.command import COMMAND
from transformer_jax.tasks.translation.task import TranslationTask
from transformer_jax.tasks.translation.translator import Translator


class Other(TranslationTask):
    pass


@dataclasses.dataclass(frozen=True)
class OtherConfig:
    size: int = 3
    names: tuple[str, ...] = ("a",)


@pytest.fixture
def registering():
    """Whatever a test registers under "other" is gone after it."""
    yield
    REGISTRY.pop("other")
    add_group("other", None)


def test_a_task_is_known_to_training_and_to_load(registering):
    register_task("other", TranslationTask, Translator)
    register_task("other", Other, Translator)
    assert registered("other").task is Other
    assert registered("other").model is Translator
    assert registered("other").command is None
    assert registered_names()[-1] == "other"


def test_references_are_imported_on_access(registering):
    register_task(
        "other", f"{__name__}:Other", "transformer_jax.nothing_here:Model", command=f"{COMMAND.__module__}:COMMAND"
    )
    assert registered("other").task is Other
    assert registered("other").command is COMMAND
    with pytest.raises(ModuleNotFoundError):
        _ = registered("other").model


def test_ours_are_registered_as_any():
    assert set(registered_names()) >= {"translation", "classification", "couplet", "transformer"}
    assert registered("translation").task is TranslationTask
    assert registered("transformer").task is None
    assert [name for name in ("translation", "classification", "couplet") if registered(name).command is None] == []


@pytest.mark.parametrize("name", ["translation", "classification", "couplet", "transformer"])
def test_our_own_names_are_taken(name):
    before = dict(REGISTRY)
    with pytest.raises(UserError, match=f"'{name}' is one of transformer_jax's own; choose another"):
        register_task(name, Other, Translator)
    assert before == REGISTRY


def test_what_is_not_registered_is_told():
    with pytest.raises(UserError, match=r"'painting' is not a registered task; known here: .*translation"):
        registered("painting")


def test_a_task_adds_its_group_to_the_config(registering):
    register_task("other", Other, Translator, config=OtherConfig)
    config = default_config()
    assert config.other.to_dict() == {"size": 3, "names": ("a",)}
    config.task = "other"
    config.other.update(size=4, names=["b", "c"])
    read = from_config_dict(config)
    assert read.other == OtherConfig(4, ("b", "c"))
    assert read.to_dict()["other"] == {"size": 4, "names": ("b", "c")}
    assert set(read.to_dict()) & {"classification", "couplet"} == set()
    assert Config(task="other").other == OtherConfig()
    config.task = "translation"
    with pytest.raises(UserError, match=r"config\.other\.size means nothing for task 'translation'; drop it"):
        from_config_dict(config)
    with pytest.raises(UserError, match=r"config\.other\.size is 'large', but must be of type int"):
        config_from_dict({"task": "other", "other": {"size": "large"}}, "config")


def test_which_metrics_are_better_when_lower(registering):
    """What is known without importing the classes of our tasks is what they say."""
    for name in registered_names():
        task = registered(name).task
        for metric in getattr(task, "metrics", ()):
            assert lower_is_better(name, metric) == (metric in task.lower_is_better), (name, metric)
    register_task("other", type("Golf", (Other,), {"lower_is_better": ("strokes",)}), Translator)
    assert lower_is_better("other", "strokes")
    assert not lower_is_better("other", "bleu")
    assert lower_is_better("of another package", "loss")
    assert not lower_is_better("of another package", "strokes")


PLUGIN = """
from transformer_jax import register_task
register_task("plugged", "plugin:Task", "transformer_jax.tasks.translation.translator:Translator",
              command="plugin_command:COMMAND")
"""
PLUGIN_COMMAND = """
from transformer_jax.tasks.pair_command import PairCommand
COMMAND = PairCommand("plug", "do what a plug does")
"""


@pytest.mark.parametrize("works", [True, False])
def test_an_installed_package_adds_a_task_and_a_command(tmp_path, works):
    (tmp_path / "plugin.py").write_text(PLUGIN if works else "import there_is_no_such_module")
    (tmp_path / "plugin_command.py").write_text(PLUGIN_COMMAND)
    metadata = tmp_path / "plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[transformer_jax.tasks]\nplugged = plugin\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.modules["jax"] = None
from transformer_jax.cli import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("do what a plug does" in done.stdout) == works
    assert "translate texts" in done.stdout
    assert ("The tasks of plugin cannot be loaded (No module named" in done.stderr) != works


def test_the_registry_imports_no_jax():
    code = f"import sys, {registry.__name__}, transformer_jax; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
