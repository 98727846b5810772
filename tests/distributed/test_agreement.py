"""What must not take long: that processes of different minds are refused."""

import pytest

from tests.distributed.launch import FLAGS, Processes, text_files, train


def test_processes_of_different_configs_are_refused(tmp_path):
    ended = train(tmp_path / "run", text_files(tmp_path), 2, own={1: ["--config.seed=3"]}).wait(60)
    assert [process.status for process in ended] == [2, 2], ended
    for process in ended:
        assert process.err.count("train.py: error:") == 1
        assert "config.seed is 3 at process 1, but 0 at process 0" in process.err
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
    assert [process.status for process in ended] == [2, 2], ended
    for process in ended:
        assert process.err.count("train.py: error:") == 1
        assert message in process.err
    assert not (tmp_path / "run").exists()


def test_processes_must_share_a_folder(tmp_path):
    """Two hosts may have a folder of one name each."""
    code = (
        "import sys, runpy; from transformer_jax.training import preparation, loop; preparation.SHARED_SECONDS = 1.0\n"
        "own = loop.as_path\n"
        "loop.as_path = lambda path: own(path + sys.argv[-1][-1]) if str(path).endswith('run') else own(path)\n"
        "preparation.agree_on = loop.agree_on = lambda *_: None\n"
        "sys.argv[0] = 'train.py'; runpy.run_path('train.py', run_name='__main__')"
    )
    ended = Processes(["-c", code, *FLAGS, *text_files(tmp_path), f"--workdir={tmp_path / 'run'}"], 2).wait(90)
    assert [process.status for process in ended] == [2, 2], ended
    for process in ended:
        assert process.err.count("train.py: error:") == 1
        assert (
            f"{tmp_path / 'run1'} of this process is not that of process 0; --workdir must be a folder" in process.err
        )
