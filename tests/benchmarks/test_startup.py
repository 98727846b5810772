import pytest

from benchmarks import startup
from benchmarks.settings import Settings
from benchmarks.shipped import ROOT
from benchmarks.startup import STEPS, _counted, _has, _there, programs_of


def test_a_log_is_watched_for_whole_lines(tmp_path):
    log = tmp_path / "log.jsonl"
    assert not _has(log, "train")
    log.write_text('{"step": 1, "kind": "train"}\n{"step": 1, "kind": "evalu', encoding="utf-8")
    assert _has(log, "train")
    assert not _has(log, "evaluation")


def test_programs_of_training_are_told_from_those_of_evaluation():
    line = "WARNING:2026-01-01 00:00:00,000:jax._src.dispatch:182: Finished XLA compilation of jit({}) in 0.1 sec\n"
    step = "Step {}/4,500: loss 9.1\n"
    output = line.format("fresh") + "Finished tracing + transforming f\n" + 2 * line.format("train_step")
    output += "".join(step.format(number) for number in range(1, STEPS + 1)) + line.format("eval_step")
    assert programs_of(output) == {
        "programs of training in an epoch, evaluation apart": ["jit(fresh)", "jit(train_step)", "jit(train_step)"],
        "programs of an evaluation, beside those of training": ["jit(eval_step)"],
    }
    assert _counted(next(iter(programs_of(output).values()))) == ["jit(fresh)", "jit(train_step) 2"]
    with pytest.raises(RuntimeError, match=f"no step {STEPS}"):
        programs_of(output.replace(f"Step {STEPS}/", "Schritt "))
    with pytest.raises(RuntimeError, match="no compiled train_step"):
        programs_of(output.replace("train_step", "eval_step"))


def test_configs_without_data_are_left_out(tmp_path, capsys):
    assert list(_there(("numerals", "multi30k"), Settings(data=tmp_path))) == ["numerals"]
    assert "multi30k is left out" in capsys.readouterr().err


def test_a_run_that_ends_too_early_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        startup.watch(["--config.nothing_of_this_name=1"], tmp_path / "run", tmp_path / "cache", "train", 2)


@pytest.mark.slow
def test_the_output_of_train_py_is_understood(tmp_path):
    config = f"--config={ROOT / 'configs' / 'classification_sample.py'}"
    options = [config, "--config.training.log_every=1", f"--config.training.eval_every={STEPS}"]
    environment = {"JAX_LOG_COMPILES": "1"}
    _, output = startup.watch(options, tmp_path / "run", tmp_path / "cache", "evaluation", 2, environment)
    training, evaluation = programs_of(output).values()
    assert "jit(common_train_step)" in training
    assert evaluation
    assert "jit(common_train_step)" not in evaluation
