"""Mistakes end in one sentence and status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_jax.cli import main
from transformer_jax.system import shipped_configs

# ml_collections loads config files in this old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
SHRINK = [
    *("--config.model.d_model=16", "--config.model.d_ff=16", "--config.tokenizer.kind=char"),
    *("--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1"),
]


@pytest.fixture
def refused(monkeypatch, capfd, tmp_path):
    """Call `transformer-jax train` in this process; gives the sentence that it ends with."""

    def call(*arguments):
        try:
            status = main(["train", *arguments])
        except SystemExit as error:  # of argparse
            status = error.code
        captured = capfd.readouterr()
        assert status == 2
        assert captured.err.startswith("transformer-jax: error: ")
        assert captured.err.count("\n") == 1, "one line"
        assert not list(tmp_path.rglob("model")), "no half-written model"
        return captured.err

    monkeypatch.chdir(ROOT)
    return call


@pytest.fixture
def text_files(tmp_path):
    """Flags for four files of three lines; with `content`, one of them holds that."""

    def flags_for(name="", content=b""):
        arguments = ["--config.data.name=text"]
        for field in ("train_source", "train_target", "validation_source", "validation_target"):
            path = tmp_path / f"{field}.txt"
            path.write_bytes(content if field == name else b"ab\nbc\nca\n")
            arguments.append(f"--config.data.{field}={path}")
        return arguments

    return flags_for


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            ["--config.optim.learning_rate=1"],
            "config.optim.learning_rate is not a field; known here: accumul",
        ),
        (["--config.optim.warmup_step=1"], "config.optim.warmup_step is not a field; did you mean warmup_steps?"),
        (["--config.optimiser.lr=1"], "config.optimiser.lr is not a field; did you mean config.optim.lr?"),
        (["--config.d_model=1"], "config.d_model is not a field; did you mean config.model.d_model?"),
        (["--config=numerls"], "numerls is neither a shipped config nor a file; did you mean numerals?"),
        (["--config=none"], "none is neither a shipped config nor a file; known here: ag_news, "),
        (["--config.optim.lr=fast"], "config.optim.lr is 'fast', but must be a number."),
        (["--config.training.num_steps=1.5"], "config.training.num_steps is '1.5', but must be an integer."),
        (["--config.model.norm_first=maybe"], "config.model.norm_first is 'maybe', but must be true or false."),
        (["--config=configs/none.py"], "configs/none.py"),
        (["--config=runs/x/config.json:de-en"], "the config of a run has none; drop :de-en"),
        (["--config=RUNS/CONFIG.JSON"], "RUNS/CONFIG.JSON is not the config of a run (No such file"),
        (["--config.decoding.rules=none"], "config.decoding.rules is now config.couplet.rules"),
        (["--config.optim.mask_rate=0.1"], "config.optim.mask_rate is now config.classification.mask_rate"),
        (["--config.couplet.rules=none"], "config.couplet.rules means nothing for task 'translation'"),
        (["--workdri=x"], "--workdri=x is not an option of train; did you mean --workdir?"),
        (["--steps", "5"], "--steps is not an option of train; did you mean --config.training.num_steps?"),
        (["multi30k:de-en"], "multi30k:de-en is not an option of train; did you mean --config multi30k:de-en?"),
        (["--config.optim.lr", "--config.optim.warmup_steps=2"], "config.optim.lr has no value"),
        (["--config.optim.lr", "-config.--config.seed=2"], "config.optim.lr has no value"),
        (["--config.seed"], "config.seed has no value"),
        (["--config.optim.schedule=none"], "config.optim.schedule is 'none'"),
        (["--config.optim.name=none"], "config.optim.name is 'none'"),
        (["--config.task=none"], "config.task is 'none'"),
        (["--config.training.metric=blue"], "config.training.metric is 'blue'"),
        (["--config.data.name=text"], "config.data.train_source is empty"),
        (["--config.data.target_language=xx"], "config.data.target_language is 'xx'"),
        (["--config.mesh.tensor=3"], "config.mesh is data=-1, fsdp=1, tensor=3"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_in_flags(refused, tmp_path, arguments, named):
    workdir = tmp_path / "run"
    # A tokenizer that learns from few sentences is as good here, and quick.
    assert named in refused("--config.tokenizer.max_texts=500", *arguments, f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("field", "content", "expected"),
    [
        ("train_source", b"ab\nb\xff\nca\n", r"train_source.txt, line 2, byte 2 (0xff) is not UTF-8"),
        ("train_target", b"ab\nbc\n", "train_source.txt has 3 lines, but "),
        ("validation_target", b"ab\n", "validation_source.txt has 3 lines, but "),
        ("train_source", b"\n \n\t\n", "has no sentence pairs"),
        ("validation_source", b"\x1f\x8b\x08", "validation_source.txt is a damaged or truncated gzip file"),
    ],
    ids=["not UTF-8", "fewer targets", "fewer validation targets", "blank", "damaged gzip"],
)
def test_mistakes_in_text_files(refused, text_files, tmp_path, field, content, expected):
    workdir = tmp_path / "run"
    assert expected in refused(*text_files(field, content), *SHRINK, f"--workdir={workdir}")
    assert not workdir.exists()


def test_missing_text_file(refused, text_files, tmp_path):
    arguments = text_files()
    (tmp_path / "validation_target.txt").unlink()
    message = refused(*arguments, *SHRINK, f"--workdir={tmp_path / 'run'}")
    assert f"{tmp_path / 'validation_target.txt'} cannot be read" in message


def test_empty_validation_files(refused, text_files, tmp_path):
    arguments = text_files()
    for side in ("source", "target"):
        (tmp_path / f"validation_{side}.txt").write_bytes(b"")
    assert "The validation data has no sentence pairs" in refused(*arguments, *SHRINK, f"--workdir={tmp_path / 'run'}")


def test_two_vocabularies_do_not_tie(refused, text_files, tmp_path):
    arguments = [*text_files(), *SHRINK, "--config.tokenizer.joint=False"]
    message = refused(*arguments, f"--workdir={tmp_path / 'run'}")
    assert "config.model.tie_embeddings is 'all', but must be output or none" in message


def test_a_batch_too_small_for_a_row(refused, text_files, tmp_path):
    arguments = [*text_files(), *SHRINK, "--config.data.tokens_per_batch=50", "--config.data.row_length=64"]
    message = refused(*arguments, f"--workdir={tmp_path / 'run'}")
    assert "config.data.tokens_per_batch is 50, but a row may take 64 tokens" in message


def test_folder_of_another_run(refused, text_files, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "10").mkdir(parents=True)
    (workdir / "tokenizer").mkdir()
    (workdir / "config.json").write_text('{"seed": 1}')
    message = refused(*text_files(), *SHRINK, f"--workdir={workdir}")
    assert "holds a run with config." in message
    assert "choose another --workdir" in message


def test_missing_data_folder_from_a_shell(tmp_path):
    """In a process of its own: neither a traceback nor a word of the libraries beside the sentence."""
    finished = subprocess.run(
        [
            *(sys.executable, "train.py", "--config=configs/multi30k.py:de-en", f"--workdir={tmp_path / 'run'}"),
            *(f"--config.data.manual_dir={tmp_path / 'none'}", f"--config.data.data_dir={tmp_path / 'data'}"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == (
        f"transformer-jax: error: config.data.manual_dir is {tmp_path / 'none'}, which is not a folder; "
        "name the folder with Multi30k's files.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_configs_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    from transformer_jax.config import load_config_file

    monkeypatch.chdir(tmp_path)  # none is here
    assert set(shipped_configs()) == {path.stem for path in (ROOT / "configs").glob("*.py")}
    for name, path in shipped_configs().items():
        assert load_config_file(name) == load_config_file(str(path))
    assert load_config_file("multi30k:en-fr").data.target_language == "fr"


def test_a_config_need_not_name_all_groups(tmp_path, monkeypatch):
    """Options reach groups that the file leaves out, with the types of the defaults."""
    from transformer_jax import config as configs
    from transformer_jax.cli import _override

    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n"
        "def get_config():\n    return ConfigDict({'task': 'couplet', 'optim': {'lr': 1}})\n"
    )
    given = configs.load_config_file(str(path))
    options = ["--config.optim.lr=0.5", "--config.data.name=antitheses", "--config.model.d_model", "64"]
    config = configs.from_config_dict(_override(given, options))
    assert (config.task, config.optim.lr, config.data.name, config.model.d_model) == ("couplet", 0.5, "antitheses", 64)
    assert config.training == configs.Config().training


def test_references_between_fields_follow_options(tmp_path):
    from transformer_jax.cli import _override
    from transformer_jax.config import load_config_file

    path = tmp_path / "mine.py"
    path.write_text(
        "from transformer_jax.config import default_config\n\n"
        "def get_config():\n    config = default_config()\n"
        "    config.model.d_ff = config.model.get_ref('d_model') * 4\n    return config\n"
    )
    assert _override(load_config_file(str(path)), ["--config.model.d_model=64"]).model.d_ff == 256


@pytest.mark.parametrize("value", ["title, review", "title,review", "('title', 'review')", "['title','review']"])
def test_names_of_columns_need_no_quotes(value):
    from transformer_jax.cli import _override
    from transformer_jax.config import default_config

    for arguments in ([f"--config.data.text_columns={value}"], ["--config.data.text_columns", value]):
        assert tuple(_override(default_config(), arguments).data.text_columns) == ("title", "review")
    one = _override(default_config(), ["--config.data.text_columns=headline", "--config.data.bucket_lengths=8,16"])
    assert (one.data.text_columns, one.data.bucket_lengths) == (("headline",), (8, 16))


def test_train_py_and_the_module_are_the_same_command():
    for command in (["train.py"], ["-m", "transformer_jax", "train"]):
        ended = subprocess.run(
            [sys.executable, *command, "--config=none"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("transformer-jax: error: none is neither a shipped config nor a file;")
