import json
import types

import pytest
from typing_extensions import get_protocol_members

from transformer_jax.config import Config, DataConfig, DecodingConfig, TrainingConfig
from transformer_jax.nn import ModelConfig
from transformer_jax.sharding import MeshConfig
from transformer_jax.system import UserError
from transformer_jax.tasks.base import Task
from transformer_jax.training import workdir as module
from transformer_jax.training.workdir import MAY_CHANGE, Origin, find_origin

FILES = {"tokenizer.model": b"first", "tokenizer.target.model": b"second"}


def task(files=FILES):
    """All that a `Task` has, by name."""
    names = [name for name in get_protocol_members(Task) if name != "tokenizer_files"]
    return types.SimpleNamespace(tokenizer_files=files, **dict.fromkeys(names, "not used"))


def claim(workdir, config, task, **origin):
    module.claim(workdir, config, task, Origin(config.model, **origin))


def begin(workdir, config=None):
    """A run as it is after its first checkpoint."""
    claim(workdir, config or Config(), task())
    (workdir / "checkpoints" / "10").mkdir(parents=True)


def test_a_claimed_folder_holds_config_and_tokenizer(tmp_path):
    workdir = tmp_path / "a" / "b"
    claim(workdir, Config(seed=3), task())
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3
    assert {file.name: file.read_bytes() for file in (workdir / "tokenizer").iterdir()} == FILES
    assert sorted(path.name for path in workdir.iterdir()) == ["config.json", "tokenizer"]


def test_finding_the_origin_writes_nothing(tmp_path):
    assert find_origin(Config(), tmp_path / "new") == Origin(Config().model)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_tokenizer(tmp_path):
    begin(tmp_path)
    found = find_origin(Config(), tmp_path)
    claim(tmp_path, Config(), task({"tokenizer.model": b"another"}))
    assert {file.name: file.read_bytes() for file in (tmp_path / "tokenizer").iterdir()} == FILES
    assert found == Origin(Config().model, tokenizer_files=FILES)


@pytest.mark.parametrize("mark", ["checkpoints/10", "model"])
def test_another_config_is_refused(tmp_path, mark):
    claim(tmp_path, Config(), task())
    (tmp_path / mark).mkdir(parents=True)
    before = (tmp_path / "config.json").read_bytes()
    changed = Config(data=DataConfig(bucket_lengths=(8, 16)))
    with pytest.raises(
        UserError, match=r"holds a run with config\.data\.bucket_lengths=\[8, .*, not \(8, 16\); choose"
    ):
        find_origin(changed, tmp_path)
    with pytest.raises(UserError, match=r"config\.seed=0, not 1"):
        find_origin(Config(seed=1), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_what_never_began_may_begin_otherwise(tmp_path):
    """A run that failed for a mistake in its config leaves no trap for the mended one."""
    claim(tmp_path, Config(), task({"old.model": b"old"}))
    (tmp_path / "checkpoints").mkdir()
    assert find_origin(Config(seed=1), tmp_path).tokenizer_files is None
    claim(tmp_path, Config(seed=1), task())
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert {file.name for file in (tmp_path / "tokenizer").iterdir()} == set(FILES)


def test_fields_of_a_later_release_count_as_their_defaults(tmp_path):
    begin(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["init_from"], values["model"]["final_norm"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert find_origin(Config(), tmp_path).tokenizer_files == FILES
    with pytest.raises(UserError, match=r"config\.init_from='', not 'elsewhere'"):
        find_origin(Config(init_from="elsewhere"), tmp_path)
    with pytest.raises(UserError, match=r"config\.model\.final_norm=False, not True"):
        find_origin(Config(model=ModelConfig(final_norm=True)), tmp_path)


def test_what_does_not_change_the_model_may_change(tmp_path):
    begin(tmp_path)
    changed = Config(
        data=DataConfig(manual_dir="x", data_dir="y"),
        training=TrainingConfig(
            num_samples=9, max_minutes=5.0, keep_checkpoints=7, log_every=1, eval_every=2, patience=3, num_steps=200_000
        ),
        decoding=DecodingConfig(beam_size=9, batch_size=3),
        mesh=MeshConfig(data=2, fsdp=4),
    )
    find_origin(changed, tmp_path)
    claim(tmp_path, changed, task())
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(changed.to_dict()))


def test_a_run_is_not_made_shorter(tmp_path):
    begin(tmp_path)
    with pytest.raises(UserError, match=r"config\.training\.num_steps=100000, not 9; choose another"):
        find_origin(Config(training=TrainingConfig(num_steps=9)), tmp_path)


def test_fields_that_may_change_exist():
    fields = Config().to_dict()
    for name in MAY_CHANGE:
        group, _, field = name.partition(".")
        assert not field or field in fields[group]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[1]"], ids=["cut off", "not UTF-8", "a list"])
def test_a_damaged_config_is_named(tmp_path, content):
    begin(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is not"):
        find_origin(Config(), tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer"])
def test_a_missing_part_is_named(tmp_path, name):
    begin(tmp_path)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name} can't be read \(No such file"):
        find_origin(Config(), tmp_path)


def test_a_file_is_no_work_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        find_origin(Config(), workdir)
        with pytest.raises(UserError, match="can't be used as --workdir"):
            claim(workdir, Config(), task())
