"""What a run keeps in its folder, and what it reads, in a stand-in for Google Cloud Storage."""

import gzip

import jax
import numpy as np
import pytest

from tests.bucket import Bucket
from tests.tasks.toys import write_bundle
from tests.training.test_logging import NAMES
from tests.training.test_logging import write as write_log
from tests.training.test_workdir import FILES, claim, task
from transformer_jax.config import Config, DataConfig
from transformer_jax.data.readers import read_lines
from transformer_jax.system import UserError
from transformer_jax.system.files import as_path
from transformer_jax.tasks.model_folder import load
from transformer_jax.tasks.translation import multi30k
from transformer_jax.tasks.translation.sources import load_pairs
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.logging import RunLog
from transformer_jax.training.workdir import Origin, find_origin

RUN = "gs://bucket/run"


def test_a_model_folder(bucket, tmp_path):
    local, remote = load(write_bundle(tmp_path)), load(write_bundle(as_path(f"{RUN}/model")))
    assert sorted(bucket()) == sorted(f"bucket/run/model/{path.name}" for path in tmp_path.iterdir())
    assert jax.tree.all(jax.tree.map(np.array_equal, local.params, remote.params))
    write_bundle(as_path(f"{RUN}/model"), seed=1)
    assert not jax.tree.all(jax.tree.map(np.array_equal, load(f"{RUN}/model").params, remote.params))


def test_a_model_folder_that_was_being_replaced_is_refused(bucket):
    """Objects are replaced one by one: whoever reads meanwhile must not get half of each."""
    write_bundle(as_path(f"{RUN}/model"))
    before = bucket()["bucket/run/model/config.json"]
    write_bundle(as_path(f"{RUN}/model"), seed=1)
    as_path(f"{RUN}/model/config.json").write_bytes(before)
    with pytest.raises(UserError, match=r"gs://bucket/run/model/model\.safetensors is not the file that config\.json"):
        load(f"{RUN}/model")


def test_a_remote_folder_that_is_no_model_stays(bucket):
    as_path(f"{RUN}/notes.txt").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and is not a model folder"):
        write_bundle(as_path(RUN))
    with pytest.raises(UserError, match=r"gs://bucket/none is not a folder"):
        load("gs://bucket/none")


def test_a_work_folder(bucket):
    workdir = as_path(RUN)
    assert find_origin(Config(), workdir) == Origin(Config().model)
    claim(workdir, Config(seed=3), task({"old.model": b"old"}))
    claim(workdir, Config(seed=3), task())
    assert {f"bucket/run/tokenizer/{name}": content for name, content in FILES.items()} == {
        name: content for name, content in bucket().items() if "/tokenizer/" in name
    }
    as_path(f"{RUN}/checkpoints/10/array").write_bytes(b"")
    assert find_origin(Config(seed=3), workdir).tokenizer_files == FILES
    with pytest.raises(UserError, match=r"gs://bucket/run holds a run with config\.seed=3, not 0"):
        find_origin(Config(), workdir)


@pytest.mark.parametrize("call", [find_origin, lambda config, workdir: claim(workdir, config, task())])
def test_a_work_folder_without_credentials(bucket, call):
    Bucket.broken = RuntimeError("401: log in")
    with pytest.raises(UserError, match=r"gs://bucket/run can't be used as --workdir \(401: log in\); choose another"):
        call(Config(), as_path(RUN))


def test_logs_of_a_run_that_went_on_from_before_its_end(bucket, tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=8) as log:
        write_log(log, range(1, 9))
    with RunLog(as_path(RUN), first_step=0, num_steps=8) as log:
        write_log(log, range(1, 7))
        log.flush()
        assert b'"step": 6' in bucket()["bucket/run/log.jsonl"]
    with RunLog(as_path(RUN), first_step=5, num_steps=8) as log:
        write_log(log, range(6, 9))
    for name in NAMES:
        assert bucket()[f"bucket/run/{name}"] == (tmp_path / name).read_bytes()
    assert any("/tensorboard/events" in name for name in bucket())


def test_text_files(bucket):
    as_path("gs://bucket/a.txt").write_bytes(b"one\ntwo\n")
    as_path("gs://bucket/b.gz").write_bytes(gzip.compress(b"one\n"))
    assert read_lines("gs://bucket/a.txt") == ["one", "two"]
    assert read_lines("gs://bucket/b.gz") == ["one"]
    with pytest.raises(UserError, match=r"gs://bucket/none\.txt cannot be read, the file does not exist"):
        read_lines("gs://bucket/none.txt")
    Bucket.broken = RuntimeError("401: log in")
    with pytest.raises(UserError, match=r"gs://bucket/a\.txt cannot be read \(401: log in\)"):
        read_lines("gs://bucket/a.txt")


def test_the_raw_files_of_a_set(bucket):
    for name in ("train.de", "train.en.gz"):
        as_path(f"gs://bucket/raw/{name}").write_bytes(b"")
    found = multi30k.local_files("gs://bucket/raw", "de-en")
    assert {split: [str(path) for path in paths] for split, paths in found.items()} == {
        "train": ["gs://bucket/raw/train.de", "gs://bucket/raw/train.en.gz"]
    }
    with pytest.raises(UserError, match=r"config\.data\.manual_dir is gs://bucket/none, which is not a folder"):
        multi30k.local_files("gs://bucket/none", "de-en")


def test_a_prepared_set_must_be_local(bucket):
    with pytest.raises(
        UserError, match=r"config\.data\.data_dir is gs://bucket/sets, but prepared sets must be on this"
    ):
        load_pairs(DataConfig(name="multi30k", data_dir="gs://bucket/sets"), "train")


def test_checkpoints_in_a_bucket_have_plain_names(bucket):
    Checkpoints(as_path("gs://bucket/run-1/a_b.c"), keep=1).close()
    for name in ("a[1]", "a*", "a%20"):
        with pytest.raises(UserError, match="has characters that checkpoints can't have in a remote path"):
            Checkpoints(as_path(f"gs://bucket/{name}"), keep=1)
