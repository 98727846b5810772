"""What a finished run shows, and when there is more to do in its folder."""

import pytest

from tests.training.test_loop import few_records, lines, scores, short  # noqa: F401  (the first is always used)
from transformer_jax.system import UserError
from transformer_jax.training import loop, run


def test_a_finished_run_says_so_and_touches_nothing(tmp_path, monkeypatch, scores, capsys):  # noqa: F811
    scores(1.0)
    outcome = run(short(), tmp_path)
    shown = capsys.readouterr().out
    command = f"transformer-jax translate --model {outcome.model}"
    assert f"The model, step 4, is in {outcome.model}" in shown
    assert f"Try it:\n  {command} one\n" in shown
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(loop, "setup", None)  # neither data nor checkpoints are read
    again = run(short(log_every=1, max_minutes=9.0), tmp_path)
    assert again == outcome
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert capsys.readouterr().out == (
        f"{tmp_path}: finished at step 4, exact_match 1 on validation data; the model is in {outcome.model}\n"
        "To train again, choose another --workdir\n"
        f"Try it:\n  {command} one\n"
    )


def test_a_finished_run_is_extended_if_its_schedule_allows_it(tmp_path, scores, capsys):  # noqa: F811
    def constant(**training):
        config = short(**training)
        config.optim.schedule = "constant"
        return config

    scores(1.0)
    run(constant(), tmp_path / "run")
    run(constant(), tmp_path / "run")
    assert "To train longer, raise config.training.num_steps, or choose another --workdir" in capsys.readouterr().out
    assert run(constant(num_steps=6, eval_every=3, log_every=1, patience=9), tmp_path / "run").step == 6
    assert [(line["kind"], line["step"]) for line in lines(tmp_path / "run") if line["step"] > 4] == [
        *(("train", 5), ("train", 6), ("evaluation", 6), ("final", 6))
    ]
    run(short(), tmp_path / "bounded")
    with pytest.raises(UserError, match=r"num_steps=4, not 8, on which its cosine schedule depends; choose another"):
        run(short(num_steps=8), tmp_path / "bounded")


def test_a_folder_that_is_claimed_is_not_finished(tmp_path, scores, monkeypatch):  # noqa: F811
    """Else the outcome of before would stand beside another model."""
    scores(1.0)
    run(short(), tmp_path)
    other = short()
    other.decoding.alpha = 0.1
    monkeypatch.setattr(loop, "train", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError, match="killed"):
        run(other, tmp_path)
    assert not (tmp_path / "finished.json").exists()


def test_an_evaluation_that_an_interruption_prevented_is_made_up_for(tmp_path, scores, monkeypatch):  # noqa: F811
    """Also if the resumed run evaluates at other steps."""

    def fail(*_, **__):
        raise RuntimeError("killed")

    scores(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_evaluate", fail)
        with pytest.raises(RuntimeError, match="killed"):
            run(short(num_steps=8), tmp_path)  # at step 2, saved and not evaluated
    run(short(num_steps=8, eval_every=4), tmp_path)
    assert [line["step"] for line in lines(tmp_path) if line["kind"] == "evaluation"] == [2, 4, 8]
