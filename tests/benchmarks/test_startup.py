import pytest

from benchmarks import startup
from benchmarks.settings import Settings
from benchmarks.startup import COMPILED, _counted, _has, _there


def test_a_log_is_watched_for_whole_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    assert not _has(log, "train")
    log.write_text('{"step": 1, "kind": "train"}\n{"step": 1, "kind": "evalu', encoding="utf-8")
    assert _has(log, "train")
    assert not _has(log, "evaluation")


def test_programs_are_counted_by_name():
    line = "WARNING:2026-01-01 00:00:00,000:jax._src.dispatch:182: Finished XLA compilation of jit({}) in 0.1 sec\n"
    output = line.format("train_step") + "Finished tracing + transforming f\n" + 2 * line.format("fresh")
    assert COMPILED.findall(output) == ["jit(train_step)", "jit(fresh)", "jit(fresh)"]
    assert _counted(COMPILED.findall(output)) == ["jit(train_step)", "jit(fresh) 2"]


def test_configs_without_data_are_left_out(tmp_path, capsys):
    assert list(_there(("numerals", "multi30k"), Settings(data=tmp_path))) == ["numerals"]
    assert "multi30k is left out" in capsys.readouterr().err


def test_a_run_that_ends_too_early_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        startup.watch(["--config.nothing_of_this_name=1"], tmp_path / "run", tmp_path / "cache", "train", 2)
