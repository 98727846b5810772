"""What must not take long: that processes of different minds are refused."""

from tests.distributed.launch import text_files, train


def test_processes_of_different_configs_are_refused(tmp_path):
    ended = train(tmp_path / "run", text_files(tmp_path), 2, own={1: ["--config.seed=3"]}).wait(60)
    assert [process.status for process in ended] == [2, 2], ended
    for process in ended:
        assert process.err.count("train.py: error:") == 1
        assert "config.seed is 3 at process 1, but 0 at process 0" in process.err
    assert not (tmp_path / "run").exists()
