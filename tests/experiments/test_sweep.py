"""Which trials a sweep starts, and what becomes of those that end, die or run elsewhere."""

import csv
import io
import json
import os
import signal

import pytest

from tests.experiments.test_study import GRID, RANGES, make_sweep, opened
from transformer_jax.experiments import sweep as sweeping
from transformer_jax.experiments.folder import run_folder
from transformer_jax.experiments.report import results, write_report
from transformer_jax.experiments.study import StorageError
from transformer_jax.experiments.sweep import PROGRAMS, field_names, ranked, run_sweep, table_of
from transformer_jax.experiments.trial import LATER, STOP
from transformer_jax.system import ResumableError, ownership

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A sweep that finds no end fails its test."""
    polls = iter(range(100))
    monkeypatch.setattr(sweeping.time, "sleep", lambda _: next(polls))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sweep"


class Done:
    """A job that is done."""

    name = ""

    def __init__(self, status):
        self._status = status

    def status(self):
        return self._status

    def stop(self):
        pass

    def wait(self):
        pass


class Script:
    """Starts no process, but calls `act(number, attempt)`, which returns the status of the job, None for ever."""

    def __init__(self, act, capacity=2):
        self.capacity, self._act = capacity, act
        self.started = []

    def start(self, number):
        self.started.append(number)
        return Done(self._act(number, self.started.count(number)))

    def find(self, name):
        return None


def test_all_trials_are_made_and_a_second_call_makes_none(folder):
    study = opened(folder, make_sweep())

    def act(number, attempt):
        study.finish(number, float(number))
        return 0

    launcher = Script(act)
    run_sweep(study, launcher, 6)
    run_sweep(study, launcher, 6)
    assert launcher.started == [0, 1, 2, 3, 4, 5]
    assert [trial.params for trial in study.trials()] == GRID


def test_a_trial_that_dies_goes_on_and_one_that_dies_again_and_again_has_failed(folder):
    study = opened(folder, make_sweep())

    def act(number, attempt):
        if number == 1 or (number == 2 and attempt == 1):
            return -signal.SIGKILL
        study.finish(number, float(number))
        return 0

    launcher = Script(act)
    run_sweep(study, launcher, 4)
    assert sorted(launcher.started) == [0, 1, 1, 1, 2, 2, 3]
    error = study.trials()[1].user_attrs["error"]
    assert error == f"Its process ended by SIGKILL, 3 times without progress; see {folder / 'trials' / '001.log'}."
    assert [trial.value for trial in study.trials()] == [0.0, None, 2.0, 3.0]


def test_a_trial_that_gets_on_may_die_often(folder):
    study = opened(folder, make_sweep())

    def act(number, attempt):
        study.report(number, attempt, 1.0)
        if attempt < 6:
            return -signal.SIGKILL
        study.finish(number, 1.0)
        return 0

    run_sweep(study, Script(act), 1)
    assert study.trials()[0].value == 1.0


def program(folder, name, **identity):
    """Another program of the sweep, as it last wrote of itself."""
    owner = folder / PROGRAMS / name / "owner.json"
    owner.parent.mkdir(parents=True, exist_ok=True)
    owner.write_text(json.dumps(ownership.identity() | identity))
    return name


def test_trials_that_a_killed_sweep_left_are_taken_over_first(folder):
    before = opened(folder, make_sweep())
    gone = program(folder, "gone", pid=os.getppid(), started="long ago")
    assert [before.ask(4, gone), before.ask(4, gone)] == [0, 1]
    study = opened(folder, make_sweep())

    def act(number, attempt):
        study.finish(number, float(number))
        return 0

    launcher = Script(act, capacity=1)
    run_sweep(study, launcher, 4)
    assert launcher.started == [0, 1, 2, 3]


def test_jobs_that_a_killed_sweep_left_in_a_queue_are_found(folder):
    before = opened(folder, make_sweep())
    before.ask(2, "gone")
    before.note_job(0, "17")
    study = opened(folder, make_sweep())

    def act(number, attempt):
        study.finish(number, float(number))
        return 0

    class Cluster(Script):
        def find(self, name):
            if name == "17":
                self._act(0, 1)
                return Done(0)
            return None

    launcher = Cluster(act, capacity=1)
    run_sweep(study, launcher, 2)
    assert launcher.started == [1]
    assert [trial.value for trial in study.trials()] == [0.0, 1.0]


def test_trials_of_a_living_program_are_waited_for(folder, monkeypatch):
    other = opened(folder, make_sweep())
    other.ask(4, program(folder, "other", pid=os.getppid(), started=ownership._start_of(os.getppid())))
    study = opened(folder, make_sweep())
    polls = []

    def sleep(_):
        polls.append(len(polls))
        if len(polls) == 5:
            other.finish(0, 9.0)

    monkeypatch.setattr(sweeping.time, "sleep", sleep)

    def act(number, attempt):
        study.finish(number, float(number))
        return 0

    launcher = Script(act)
    run_sweep(study, launcher, 4)
    assert launcher.started == [1, 2, 3]
    assert study.trials()[0].value == 9.0


@pytest.mark.parametrize("what", ["program", "run"])
def test_trials_of_another_machine_are_taken_over_when_it_falls_silent(folder, monkeypatch, what):
    other = opened(folder, make_sweep())
    other.ask(2, "far")
    owner = (folder / PROGRAMS / "far" if what == "program" else run_folder(folder, 0)) / "owner.json"
    owner.parent.mkdir(parents=True)
    owner.write_text('{"machine": "another", "pid": 5}')
    study = opened(folder, make_sweep())
    now = 0.0
    monkeypatch.setattr(sweeping.time, "monotonic", lambda: now)

    def sleep(_):
        nonlocal now
        now += 10
        if now < 200:
            owner.write_text(f'{{"machine": "another", "pid": 5, "beats": {now}}}')

    monkeypatch.setattr(sweeping.time, "sleep", sleep)
    at = []

    def act(number, attempt):
        at.append((number, now))
        study.finish(number, float(number))
        return 0

    run_sweep(study, Script(act, capacity=1), 2)
    (first, _), (second, then) = at
    assert (first, second) == (1, 0)
    assert 190 + ownership.DEAD_SECONDS <= then <= 210 + ownership.DEAD_SECONDS


def test_a_full_disk_stops_the_sweep_and_fails_no_trial(folder):
    study = opened(folder, make_sweep())
    log = folder / "trials" / "000.log"
    log.parent.mkdir()
    log.write_text("Step 1\nruns/x can't be written (No space left on device); rerun the command to resume.\n")
    with pytest.raises(
        ResumableError, match=r"^Trial 0 is stopped: runs/x can't be written \(No space left on device\)"
    ):
        run_sweep(study, Script(lambda number, attempt: STOP), 4)
    assert {trial.state.name for trial in study.trials()} == {"RUNNING"}
    assert not list((folder / PROGRAMS).glob("*")), "the others see that it is gone"


def test_a_job_that_cannot_be_started_is_one_sentence(folder):
    study = opened(folder, make_sweep())

    def refuse(number, attempt):
        raise RuntimeError("sbatch: error: invalid partition")

    with pytest.raises(
        ResumableError, match=r"^Trial 0 of .*sweep can't be started \(RuntimeError: sbatch: error: inv"
    ):
        run_sweep(study, Script(refuse), 4)


@pytest.mark.parametrize("status", [LATER, 128 + signal.SIGTERM])
def test_a_job_that_another_program_has_or_that_has_saved_is_no_death(folder, status):
    study = opened(folder, make_sweep())

    def act(number, attempt):
        if attempt < 5:
            return status
        study.finish(number, 1.0)
        return 0

    run_sweep(study, Script(act), 1)
    assert "deaths" not in study.trials()[0].user_attrs


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("The study is gone.")])
def test_what_runs_is_stopped_when_the_sweep_ends(folder, monkeypatch, error):
    study = opened(folder, make_sweep())
    stopped = []

    class Running(Done):
        def stop(self):
            stopped.append("stop")

        def wait(self):
            stopped.append("wait")

    launcher = Script(lambda number, attempt: None)
    monkeypatch.setattr(launcher, "start", lambda number: Running(None))

    def sleep(_):
        raise error

    monkeypatch.setattr(sweeping.time, "sleep", sleep)
    with pytest.raises(type(error)):
        run_sweep(study, launcher, 4)
    assert stopped == ["stop", "stop", "wait", "wait"]
    assert [trial.state.name for trial in study.trials()] == ["RUNNING", "RUNNING"]


@pytest.fixture
def finished(folder):
    """A sweep of ranges: four trials are finished, one is pruned, one has failed."""
    study = opened(folder, make_sweep(RANGES))
    for value in (1.0, 4.0, 3.0, 2.0):
        number = study.ask(6, "program")
        study.report(number, 10, value / 2)
        study.finish(number, value)
    study.report(study.ask(6, "program"), 10, 0.1)
    study.finish(4, pruned=True)
    study.finish(study.ask(6, "program"), error="config.optim.lr is too much, lower it.")
    return study


def test_the_ranking(finished):
    assert [trial.number for trial in ranked(finished.trials(), minimize=False)] == [1, 2, 3, 0, 4, 5]
    assert [trial.number for trial in ranked(finished.trials(), minimize=True)] == [0, 3, 2, 1, 4, 5]


def test_the_csv_file_has_every_trial(finished):
    rows = list(csv.DictReader(io.StringIO(results(finished, ranked(finished.trials(), minimize=False)))))
    assert [row["trial"] for row in rows] == ["1", "2", "3", "0", "4", "5"]
    assert [row["bleu"] for row in rows] == ["4.0", "3.0", "2.0", "1.0", "0.1", ""]
    assert rows[-1]["error"] == "config.optim.lr is too much, lower it."
    for row, trial in zip(rows, ranked(finished.trials(), minimize=False), strict=True):
        assert float(row["optim.lr"]) == trial.params["optim.lr"]


def test_the_report_has_pictures_and_the_best_config(finished, folder):
    from PIL import Image

    from transformer_jax.config import read_config

    lines = write_report(finished)
    best = read_config(str(folder / "best" / "config.json"))
    assert best.optim.lr == finished.trials()[1].params["optim.lr"]
    assert best.seed == finished.trials()[1].params["seed"]
    assert "Trial 5 failed: config.optim.lr is too much, lower it." in lines
    names = {path.stem for path in (folder / "pictures").iterdir()}
    assert names == {"history", "importance", "parallel_coordinates", "slices", "learning_curves"}
    for path in (folder / "pictures").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_pictures_are_readable(finished, folder, monkeypatch):
    drawn = {}
    monkeypatch.setattr("transformer_jax.plots.save_picture", lambda path, figure: drawn.update({path.stem: figure}))
    write_report(finished)
    logarithmic = [
        axis
        for figure in drawn.values()
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if axis.get_scale() == "log" and axes.get_label() != "<colorbar>"
    ]
    assert len(logarithmic) >= 2
    for axis in logarithmic:
        low, high = sorted(axis.get_view_interval())
        labels = axis.get_major_formatter().format_ticks(axis.get_majorticklocs())
        shown = [float(label) for label in labels if low <= float(label) <= high]
        assert len(shown) >= 2
        assert len(set(shown)) == len(shown)
    [lines] = [each for each in drawn["parallel_coordinates"].axes[0].collections if each.colorbar is not None]
    colours = lines.cmap([0.0, 0.5, 1.0])[:, :3]
    assert colours.mean(axis=1).max() < 0.7, "none is nearly white"


def test_a_report_of_a_sweep_that_has_just_begun(folder):
    study = opened(folder, make_sweep())
    study.ask(6, "program")
    lines = write_report(study)
    assert "There are no pictures, as no trial has finished" in lines
    assert not (folder / "best").exists()


def test_the_table_fits_a_terminal(finished):
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=80).print(table_of(finished, finished.trials(), 6))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].strip() == "6 of 6 trials are over"
    assert lines[2].split()[0] == "1"


def test_names_are_short_and_distinct():
    assert field_names(["optim.lr", "model.d_ff", "a.x", "b.x"]) == ["lr", "d_ff", "a.x", "b.x"]
