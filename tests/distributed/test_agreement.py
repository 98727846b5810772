"""Processes that disagree are refused, all with the same sentence."""

import pytest

from tests.distributed.launch import FLAGS, Processes, assert_refused, text_files, train


def test_processes_of_different_configs_are_refused(tmp_path):
    ended = train(tmp_path / "run", text_files(tmp_path), 2, own={1: ["--config.seed=3"]}).wait(60)
    assert_refused(ended, "config.seed is 3 at process 1, but 0 at process 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["--config.mesh.data=3"], "config.mesh is data=3, fsdp=1, tensor=1, which does not fit the device count of 4"),
        (["--config.mesh.data=1", "--config.mesh.tensor=4"], "config.model.num_heads is 2, which does not divide into"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_all(tmp_path, axes, message):
    ended = train(tmp_path / "run", text_files(tmp_path), 2, devices=2, more=axes).wait(60)
    assert_refused(ended, message)
    assert not (tmp_path / "run").exists()


def train_apart(folder, data):
    """Two processes as on two hosts: relative paths name files in `folder/0` and `folder/1`."""
    code = (
        "import os, sys, runpy; from transformer_jax.training import setup; setup.SHARED_SECONDS = 1.0\n"
        f"script = os.path.abspath('train.py'); os.chdir(os.path.join({str(folder)!r}, sys.argv[-1][-1]))\n"
        "sys.argv[0] = 'train.py'; runpy.run_path(script, run_name='__main__')"
    )
    return Processes(["-c", code, *FLAGS, *data, "--workdir=run"], 2).wait(90)


@pytest.fixture
def hosts(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_processes_must_share_a_folder(tmp_path, hosts):
    (hosts[1] / "run").mkdir()
    (hosts[1] / "run" / "config.json").write_text("{}")  # what an earlier attempt may have left
    ended = train_apart(tmp_path, text_files(tmp_path))
    assert_refused(ended, "run of this process is not that of process 0; --workdir must be a folder that all share")


@pytest.mark.parametrize("begun", [0, 1])
def test_a_run_must_have_begun_for_all(tmp_path, hosts, begun):
    (hosts[begun] / "run" / "checkpoints" / "5").mkdir(parents=True)
    ended = train_apart(tmp_path, text_files(tmp_path))
    assert_refused(ended, "run holds a run at some processes only; --workdir must be a folder that all share")


def test_processes_must_have_the_same_data(tmp_path, hosts):
    for folder in hosts:
        text_files(folder)
    corrected = hosts[1] / "train.target"
    corrected.write_text(corrected.read_text().replace("seven", "eleven"))
    ended = train_apart(tmp_path, [option.replace(f"{hosts[0]}/", "") for option in text_files(hosts[0])])
    assert_refused(ended, "The digest of the training data is")
