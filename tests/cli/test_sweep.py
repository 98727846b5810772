"""The command `sweep`: mistakes end in one sentence, before anything is written."""

import pytest

from tests.experiments.test_study import opened
from transformer_jax.cli import main

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'transformer-jax[sweep]'")

HYPER = "from configs.numerals import get_config\n\ndef get_hyper(h):\n    return {}\n"
GRID = 'h.product([h.sweep("optim.lr", [1e-3, 2e-3]), h.sweep("seed", [1, 2])])'


@pytest.fixture
def call(capfd):
    def call(*arguments):
        try:
            status = main(["sweep", *map(str, arguments)])
        except SystemExit as error:  # of argparse
            status = error.code
        return (status, *capfd.readouterr())

    return call


@pytest.fixture
def config(tmp_path):
    def write(points):
        path = tmp_path / "experiment.py"
        path.write_text(HYPER.format(points))
        return path

    return write


@pytest.mark.parametrize(
    ("points", "options", "sentence"),
    [
        ('h.sweep("optim.rl", [1])', [], "get_hyper sets optim.rl, which is not a field; did you mean optim.lr?"),
        ('h.uniform("optim.lr", 2, 1)', [], "the range of optim.lr goes from 2 to 1; give the smaller end first."),
        ('h.uniform("optim.lr", 1, 2)', [], "get_hyper draws values from ranges; say how many trials to make"),
        (GRID, ["--trials=9"], "--trials is 9, but the grid of"),
        (GRID, ["--trials=0"], "--trials is 0, but must be at least 1."),
        (GRID, ["--workers=0"], "--workers is 0, but must be at least 1."),
        (GRID, ["--metric=blue"], "--metric is 'blue', but must be one of loss, perplexity, exact_match"),
        (GRID, ["--sampler=none"], "--sampler is 'none'; known here: tpe, random, qmc"),
        (GRID, ["--config.seeds=1"], "config.seeds is not a field; did you mean seed?"),
        (GRID, ["--steps=9"], "--steps=9 is not an option of sweep; did you mean --config.training.num_steps?"),
        (GRID, ["--launcher=local", "--slurm=x"], "--slurm is 'x', but must be KEY=VALUE"),
        (GRID, ["--storage=x"], "--storage is no URL of a database"),
        (GRID, ["--workdir="], "--workdir is empty; name a file or folder."),
    ],
)
def test_mistakes(call, config, tmp_path, points, options, sentence):
    folder = tmp_path / "sweep"
    status, out, err = call("--config", config(points), "--workdir", folder, *options)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (folder / "trials").exists()


def test_what_is_needed(call, tmp_path):
    assert "sweep needs --config, or --report DIR" in call()[2]
    assert f"{tmp_path / 'none'} holds no sweep" in call("--report", tmp_path / "none")[2]


def test_a_report(call, tmp_path):
    from tests.experiments.test_study import make_sweep

    study = opened(tmp_path / "sweep", make_sweep())
    study.finish(study.ask(6, "program"), 20.5)
    study.finish(study.ask(6, "program"), 30.5)
    status, out, err = call("--report", tmp_path / "sweep")
    assert (status, err) == (0, "")
    assert "2 of 2 trials are over" in out
    assert f"Best: trial 1, bleu 30.5, {tmp_path / 'sweep' / 'trials' / '001'}" in out
    assert (tmp_path / "sweep" / "results.csv").exists()
