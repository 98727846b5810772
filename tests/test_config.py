import copy
import dataclasses
import importlib.util
import json
import pickle
from pathlib import Path

import pytest

from transformer_jax.config import Config, default_config, from_config_dict, load_config_file, read_config, upgraded
from transformer_jax.system import UserError

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))


def test_defaults_survive_the_crossing():
    assert from_config_dict(default_config()) == Config()


def test_changes_survive_the_crossing():
    config = default_config()
    config.data.bucket_lengths = [4, 12]
    config.optim.lr = 2
    config.model.norm_first = True
    crossed = from_config_dict(config)
    assert crossed.data.bucket_lengths == (4, 12)
    assert type(crossed.optim.lr) is float
    assert crossed == dataclasses.replace(
        Config(),
        data=dataclasses.replace(Config().data, bucket_lengths=(4, 12)),
        optim=dataclasses.replace(Config().optim, lr=2.0),
        model=dataclasses.replace(Config().model, norm_first=True),
    )


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("optim", "lr", "fast"),
        ("optim", "warmup_steps", 0.5),
        ("model", "d_model", True),
        ("model", "norm_first", 1),
        ("data", "name", 3),
        ("data", "bucket_lengths", ["8"]),
        ("data", "bucket_lengths", 8),
    ],
)
def test_wrong_type_names_the_field(group, field, value):
    values = default_config().to_dict()
    values[group][field] = value
    with pytest.raises(UserError, match=rf"config\.{group}\.{field} is .* must be of type"):
        from_config_dict(type(default_config())(values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, r"config\.sead is not a field; did you mean seed\?"),
        ({"model": {"d_modell": 64}}, r"config\.model\.d_modell is not a field; did you mean d_model\?"),
        ({"modle": {"d_model": 64}}, r"config\.modle is not a field; did you mean model\?"),
        ({"x": 64}, r"config\.x is not a field; known here: task, seed,"),
        ({"model": 64}, r"config\.model is 64, but must be a group of fields\."),
        ({"seed": {"a": 1}}, r"config\.seed is .*must be of type int"),
    ],
)
def test_unknown_fields_and_groups_are_named(values, message):
    with pytest.raises(UserError, match=message):
        from_config_dict(type(default_config())(values))


def test_the_dataclasses_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.d_model = 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_file_crosses(path):
    spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert from_config_dict(module.get_config()) != Config()
    assert f"transformer-jax train --config {path.stem}" in " ".join(module.__doc__.split())


CONFIG_FILE = """
from transformer_jax.config import default_config


def get_config(choice="small"):
    sizes = {"small": 64, "large": 512}
    config = default_config()
    config.model.d_model = sizes[choice]
    return config
"""


@pytest.mark.parametrize(("suffix", "d_model"), [("", 64), (":large", 512)])
def test_a_config_file_is_called_with_its_argument(tmp_path, suffix, d_model):
    (tmp_path / "mine.py").write_text(CONFIG_FILE)
    config = from_config_dict(load_config_file(f"{tmp_path / 'mine.py'}{suffix}"))
    assert config == dataclasses.replace(Config(), model=dataclasses.replace(Config().model, d_model=d_model))


@pytest.mark.parametrize(
    ("source", "suffix", "message"),
    [
        (None, "", "is not a file; name one, or a shipped config, such as ag_news,"),
        (None, ":large", "is not a file; name one, or a shipped config, such as ag_news,"),
        (CONFIG_FILE, ":huge", r"gives no config \(KeyError: huge\)"),
        ("def get_config(): pass", ":large", r"gives no config \(TypeError: .*0 positional arguments"),
        ("def get_hyper(): pass", "", r"has no function get_config"),
        ("def get_config(): return {'seed': 1}", "", "returns dict, but must return a ConfigDict"),
        ("def get_config(): pass", "", "returns NoneType, but must return a ConfigDict"),
        ("def get_config(:", "", r"gives no config \(SyntaxError: "),
        ("import there_is_no_such_module", "", r"gives no config \(ModuleNotFoundError: "),
        ("raise ValueError('one\\ntwo')", "", r"gives no config \(ValueError: one\)"),
    ],
    ids=[
        "no file",
        "no file with argument",
        "refused",
        "no argument",
        "no get_config",
        "dict",
        "nothing",
        "syntax",
        "import",
        "two lines",
    ],
)
def test_a_config_file_that_gives_none_is_named_in_one_line(tmp_path, source, suffix, message):
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(UserError, match=message) as caught:
        load_config_file(f"{path}{suffix}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        load_config_file(str(tmp_path))


def test_the_config_of_a_run_is_read_back(tmp_path):
    config = dataclasses.replace(Config(), seed=7)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert read_config(str(path)) == config


@pytest.mark.parametrize("content", ["{", '{"seed": "x"}', "[]", '{"sed": 1}', "[" * 100_000])
def test_a_broken_config_of_a_run_is_told(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(str(path))


OLD = {
    "task": "couplet",
    "data": {"name": "text", "extra_train": "more", "blocklist": "words.txt"},
    "optim": {"mask_rate": 0.0, "mask_loss": 0.0, "lr": 0.5},
    "decoding": {"rules": "all", "max_length": 20},
}
"""Fields of a config as release 0.1.0 stored it, which kept those of single tasks in shared groups."""


@pytest.mark.parametrize(
    ("task", "group"),
    [
        ("couplet", {"rules": "all", "extra_train": "more", "blocklist": "words.txt"}),
        ("classification", {"extra_train": "more", "mask_rate": 0.0, "mask_loss": 0.0}),
        ("translation", None),
    ],
)
def test_a_stored_config_of_an_earlier_release_is_upgraded(tmp_path, task, group):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OLD | {"task": task}))
    config = read_config(str(path))
    assert dataclasses.asdict(config)["groups"] == ({} if group is None else {task: group})
    assert config.decoding.max_length == 21, "it did not count the end of sentence"
    assert (config.optim.lr, config.data.name) == (0.5, "text")
    assert upgraded(config.to_dict()) == config.to_dict()
    assert OLD["decoding"] == {"rules": "all", "max_length": 20}, "its argument stays as it is"


@pytest.mark.parametrize("values", [[], 3, {"data": 3}, {"decoding": []}, {"optim": 3}])
def test_what_is_not_a_config_is_not_upgraded(values):
    assert upgraded(values) == values


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("decoding.rules", "config.couplet.rules"),
        ("data.blocklist", "config.couplet.blocklist"),
        ("data.extra_train", "config.classification.extra_train or config.couplet.extra_train"),
        ("optim.mask_rate", "config.classification.mask_rate"),
        ("optim.mask_loss", "config.classification.mask_loss"),
    ],
)
def test_a_field_that_moved_is_refused_with_its_place_now(old, now):
    config = default_config()
    group, _, name = old.partition(".")
    config[group][name] = "x"
    with pytest.raises(UserError, match=rf"config\.{old} is now {now}; set it there"):
        from_config_dict(config)


def test_each_task_has_its_own_group_and_refuses_those_of_others():
    config = default_config()
    config.couplet.rules = "none"
    with pytest.raises(UserError, match=r"config\.couplet\.rules means nothing for task 'translation'; drop it"):
        from_config_dict(config)
    config.task = "couplet"
    crossed = from_config_dict(config)
    assert crossed.couplet.rules == "none"
    assert crossed.classification.mask_rate == 0.0
    assert "couplet" in crossed.to_dict()
    assert "classification" not in crossed.to_dict()
    with pytest.raises(AttributeError, match="Config has no attribute 'painting'"):
        _ = crossed.painting
    assert copy.deepcopy(crossed) == pickle.loads(pickle.dumps(crossed)) == crossed


def test_the_config_of_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format_version": 2}')
    with pytest.raises(UserError, match=r"config\.json is the config of a model, not of a run"):
        read_config(str(tmp_path / "config.json"))
