"""Sweeps in folders: trials are numbered, drawn, told and found again."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from transformer_jax.config import default_config
from transformer_jax.experiments.space import Hyper, check_points
from transformer_jax.system import UserError

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'transformer-jax[sweep]'")

from transformer_jax.experiments.folder import Sweep, claim_sweep, read_sweep
from transformer_jax.experiments.study import StorageError, Study, without_password

h = Hyper()
GRID = h.product([h.sweep("optim.lr", [0.1, 0.2]), h.sweep("seed", [1, 2, 3])])
RANGES = h.product([h.loguniform("optim.lr", 1e-4, 1e-1), h.integer("seed", 0, 1000)])
ME = "this program"


def make_sweep(points=GRID, **fields):
    config = default_config()
    checked = check_points(points, config)
    return Sweep(config.to_dict(), checked, metric="bleu", minimize=False, **{"sampler": "random", **fields})


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


def opened(folder, sweep):
    return Study(folder, claim_sweep(folder, sweep))


def test_each_point_of_a_grid_is_tried_once_whoever_asks(folder):
    sweep = make_sweep()
    programs = [opened(folder, sweep), opened(folder, sweep)]
    numbers = [programs[index % 2].ask(6, ME) for index in range(6)]
    assert numbers == [0, 1, 2, 3, 4, 5]
    assert [study.ask(6, ME) for study in programs] == [None, None]
    assert [trial.params for trial in programs[0].trials()] == GRID


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_an_interruption_changes_no_draw(tmp_path, sampler):
    sweep = make_sweep(RANGES, sampler=sampler)
    whole = opened(tmp_path / "whole", sweep)
    for _ in range(4):
        whole.ask(4, ME)
    for _ in range(4):
        opened(tmp_path / "parts", sweep).ask(4, ME)
    drawn = [trial.params for trial in whole.trials()]
    assert drawn == [trial.params for trial in opened(tmp_path / "parts", sweep).trials()]
    assert len({params["optim.lr"] for params in drawn}) == 4
    assert all(1e-4 <= params["optim.lr"] <= 1e-1 and params["seed"] in range(1001) for params in drawn)


def test_a_program_killed_while_it_draws_leaves_its_trial_to_the_next(folder, monkeypatch):
    whole = opened(folder, make_sweep(RANGES))
    whole.ask(3, ME)
    study = opened(folder.with_name("killed"), make_sweep(RANGES))

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("optuna.trial.Trial.suggest_int", kill)
        with pytest.raises(KeyboardInterrupt):
            study.ask(3, ME)
    assert set(study.trials()[0].params) == {"optim.lr"}
    assert study.adopt(0, "another")
    assert study.trials()[0].params == whole.trials()[0].params
    assert study.trials()[0].user_attrs["program"] == "another"
    assert [study.ask(3, ME), study.ask(3, ME), study.ask(3, ME)] == [1, 2, None]


def test_a_line_that_was_cut_spoils_nothing(folder):
    study = opened(folder, make_sweep())
    study.ask(6, ME)
    journal = folder / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "worker_id": ')
    assert study.ask(6, ME) == 1, "by a program that has it open"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "worker_id": ')
    again = opened(folder, make_sweep())
    assert again.ask(6, ME) == 2
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())
    assert [trial.params for trial in study.trials()] == GRID[:3]


def test_a_lock_that_a_killed_program_left_is_broken(tmp_path, monkeypatch):
    """Also of a folder with a relative name."""
    monkeypatch.chdir(tmp_path)
    study = opened(Path("sweep"), make_sweep())
    study.ask(6, ME)
    Path("sweep/study.journal.lock").symlink_to(Path("sweep/study.journal").absolute())
    moment = time.monotonic()
    monkeypatch.setattr("optuna.storages.journal._file.time.monotonic", lambda: 100 * (time.time() - moment))
    assert opened(Path("sweep"), make_sweep()).ask(6, ME) == 1


def test_what_is_told_of_a_trial(folder):
    study = opened(folder, make_sweep())
    for _ in range(4):
        study.ask(6, ME)
    assert not study.report(0, 10, 1.5)
    assert not study.report(0, 10, 9.5), "resumed: this evaluation has been told"
    study.finish(0, 2.5, minutes=1.5)
    study.finish(0, error="told by a program that was late")
    assert study.report(0, 20, 9.5), "it is over"
    assert not study.adopt(0, ME)
    study.finish(1, error="The disk is full.")
    study.report(2, 10, 0.5)
    study.finish(2, pruned=True)
    study.finish(3, float("nan"))
    found = study.trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "FAIL", "PRUNED", "FAIL"]
    assert (found[0].value, found[0].intermediate_values) == (2.5, {10: 1.5})
    assert found[0].user_attrs["minutes"] == 1.5
    assert found[1].user_attrs["error"] == "The disk is full."
    assert found[3].user_attrs["error"] == "config.training.metric: bleu is nan."


def test_the_median_prunes_what_is_worse_than_half(folder):
    study = opened(folder, make_sweep(prune="median"))
    for value in (1.0, 2.0, 3.0, 4.0):
        number = study.ask(6, ME)
        assert not study.report(number, 100, value), "the first ones are never pruned"
        study.finish(number, value)
    assert study.report(study.ask(6, ME), 100, 2.4)
    assert not study.report(study.ask(6, ME), 100, 2.6)


def test_the_number_of_trials(folder):
    grid, ranges = make_sweep(), make_sweep(RANGES)
    assert (grid.default_trials(None, folder), grid.default_trials(4, folder), ranges.default_trials(9, folder)) == (
        6,
        4,
        9,
    )
    with pytest.raises(UserError, match=r"^get_hyper draws values from ranges; say how many .*: --trials N\.$"):
        ranges.default_trials(None, folder)
    with pytest.raises(UserError, match=r"^--trials is 7, but the grid of .*sweep has 6 points\.$"):
        grid.default_trials(7, folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"metric": "chrf"}, "metric"),
        ({"points": RANGES}, "points"),
        ({"sampler": "qmc"}, "sampler"),
        ({"prune": "median"}, "prune"),
        ({"seed": 1}, "seed"),
        ({"config": {**make_sweep().config, "seed": 5}}, r"config\.seed"),
    ],
)
def test_another_sweep_in_the_folder(folder, change, what):
    claim_sweep(folder, make_sweep())
    with pytest.raises(
        UserError, match=f"^{folder} holds a sweep with other {what}; choose another --workdir, or delete"
    ):
        claim_sweep(folder, dataclasses.replace(make_sweep(), **change))
    assert read_sweep(folder).to_json() == make_sweep().to_json()


def test_a_sweep_of_a_release_that_lacked_a_field_goes_on(folder):
    claim_sweep(folder, make_sweep())
    content = json.loads((folder / "sweep.json").read_text())
    del content["config"]["training"]["trackers"]
    (folder / "sweep.json").write_text(json.dumps(content))
    claim_sweep(folder, make_sweep())


def test_folders_that_hold_something_else(folder):
    with pytest.raises(UserError, match="holds no sweep; name the --workdir of one"):
        read_sweep(folder)
    folder.mkdir()
    (folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\); choose another --workdir"):
        claim_sweep(folder, make_sweep())
    (folder / "thesis.tex").unlink()
    (folder / ".sweep.json.0123.tmp").touch()  # of a program that was killed here
    claim_sweep(folder, make_sweep())
    content = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(content | {"format_version": 9}))
    with pytest.raises(UserError, match="has format_version 9, but this release reads 1"):
        read_sweep(folder)
    for damaged in ("{", "[]", '{"format_version": 1}', '{"format_version": 1, "points": []}'):
        (folder / "sweep.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            read_sweep(folder)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////nowhere/study.db", "sqlite:////nowhere/study.db can't be used"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:9/x",
            r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:9/x can't be used",
        ),
        ("nothing", "--storage is no URL of a database, such as postgresql"),
        ("nothing://here", "nothing://here can't be used"),
    ],
)
def test_a_storage_that_cannot_be_used(folder, url, shown):
    if "psycopg" in url:
        pytest.importorskip("psycopg")

    def begin():
        return Study(folder, claim_sweep(folder, make_sweep(storage=without_password(url))), url)

    with pytest.raises(UserError, match=f"^{shown}") as caught:
        begin()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_study_is_sought_where_it_is(folder, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    there = claim_sweep(folder, make_sweep(storage=url))
    study = Study(folder, there, url)
    study.ask(6, ME)
    study.close()
    with pytest.raises(UserError, match=f"^The study of {folder} is in {url}; give --storage {url}.$"):
        Study(folder, there)
    with pytest.raises(UserError, match=f"^The study of {folder} is in {folder / 'study.journal'}; drop --storage.$"):
        Study(folder, make_sweep(), url)


def test_a_full_disk_is_one_sentence(folder, monkeypatch):
    study = opened(folder, make_sweep())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study._storage._backend, "append_logs", full)
    with pytest.raises(StorageError, match=r"study.journal can't be used \(No space left on device\); mend that and"):
        study.ask(6, ME)
