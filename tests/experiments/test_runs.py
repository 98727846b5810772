"""What the folders of runs say is read, whatever state they are in."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.experiments.folders import evaluations, training, write_lines, write_run
from transformer_jax.experiments.runs import find_runs, is_run, read_run
from transformer_jax.system import UserError
from transformer_jax.system.files import as_path
from transformer_jax.system.ownership import Ownership

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "0.1.0"


def test_a_real_run(trained):
    folder, outcome = trained
    record = read_run(folder)
    found = record.summary()
    assert (found.state, found.task, found.metric) == ("finished", "classification", "accuracy")
    assert (found.path, found.step, found.num_steps) == (str(folder), outcome.step, 6)
    assert found.final == outcome.scores["accuracy"]
    assert found.minutes == pytest.approx(outcome.scores["minutes"], abs=0.1)
    scores = dict(zip(*record.curve("accuracy"), strict=True))
    assert list(scores) == [2, 4, 6]
    assert found.best == max(scores.values())
    assert found.best_step == json.loads((folder / "checkpoints" / "protected.json").read_text())["step"]
    assert found.tokens_per_second > 0
    assert record.checkpoints[-1] == 6
    assert found.problems == ()
    assert record.summary("loss").final == outcome.scores["loss"]
    assert {"loss", "accuracy", "macro_f1"} <= set(record.metrics())


def test_states(tmp_path):
    empty = write_run(tmp_path / "empty")
    stopped = write_run(tmp_path / "stopped", training(3.0))
    saved = write_run(tmp_path / "saved")
    (saved / "checkpoints" / "20").mkdir(parents=True)
    (saved / "checkpoints" / "100").mkdir()
    (saved / "checkpoints" / "protected.json").write_text("{}")
    finished = write_run(tmp_path / "finished", training(3.0))
    (finished / "finished.json").write_text('{"scores": {"bleu": 12.5}, "step": 50}')
    states = {name: read_run(tmp_path / name).summary() for name in ("empty", "stopped", "saved", "finished")}
    assert {name: found.state for name, found in states.items()} == {
        "empty": "empty",
        "stopped": "stopped",
        "saved": "stopped",
        "finished": "finished",
    }
    assert [states[name].step for name in ("empty", "stopped", "saved")] == [0, 50, 100]
    assert states["finished"].final == 12.5, "also where the log has no such line"
    for folder in (empty, stopped, finished):
        owner = Ownership(folder)
        owner.acquire()
        assert read_run(folder).state == "running"
        owner.release()
        assert read_run(folder).state == states[folder.name].state


def test_a_run_that_is_reading_its_data(tmp_path):
    owner = Ownership(tmp_path / "run")
    owner.acquire()
    assert find_runs(tmp_path) == [tmp_path / "run"]
    assert (read_run(tmp_path / "run").state, read_run(tmp_path / "run").problems) == ("running", ())
    owner.release()


def ranked_by_hand(scores, losses, sign):
    """As the loop does it: one after the other, a later one must be better."""
    best = None
    for step, (score, loss) in enumerate(zip(scores, losses, strict=True), 1):
        if score is not None and (best is None or (sign * score, -loss) > best[:2]):
            best = sign * score, -loss, step
    return best and best[2]


@pytest.mark.parametrize(("metric", "sign"), [("bleu", 1), ("perplexity", -1)])
def test_the_best_is_what_the_run_takes_for_the_best(tmp_path, metric, sign):
    draw = random.Random(0)
    for number in range(30):
        scores = [draw.choice([None, 0.0, 1.0, 2.0]) for _ in range(draw.randrange(8))]
        losses = [draw.choice([1.0, 2.0]) for _ in scores]
        log = [
            {"step": step, "kind": "evaluation", "loss": loss, metric: score}
            for step, (score, loss) in enumerate(zip(scores, losses, strict=True), 1)
        ]
        found = read_run(write_run(tmp_path / str(number), log or training(1.0), metric=metric)).summary()
        assert found.best_step == ranked_by_hand(scores, losses, sign)
        assert found.best == (None if found.best_step is None else scores[found.best_step - 1])


def test_speed_and_time(tmp_path):
    rates = [10.0, 1000.0, 1200.0]
    timing = [{"step": 1, "kind": "program", "description": "A step takes 3.8 MB"}]
    timing += [
        {"step": step, "kind": "train", "tokens_per_second": rate, "minutes": step / 10}
        for step, rate in enumerate(rates, 1)
    ]
    found = read_run(write_run(tmp_path / "run", training(3.0), timing)).summary()
    assert (found.tokens_per_second, found.minutes) == (1000.0, 0.3)


# Damage: what can be read is read, and one sentence tells of the rest.


def damaged(folder, name, content):
    (folder / name).write_bytes(content)
    record = read_run(folder)
    (sentence,) = record.problems
    assert sentence.endswith(".")
    assert str(folder / name) in sentence
    return record, sentence


@pytest.fixture
def run_folder(tmp_path):
    log = [*training(3.0, 2.0, 1.5, 1.2), *evaluations(10.0, 30.0)]
    return write_run(tmp_path / "run", log, [{"step": 50, "kind": "train", "minutes": 2.0}])


def test_a_log_that_ends_within_a_line(run_folder):
    content = (run_folder / "log.jsonl").read_bytes()
    record, sentence = damaged(run_folder, "log.jsonl", content[:-9])
    assert "ends within a line" in sentence
    assert record.summary().best == 10.0
    owner = Ownership(run_folder)
    owner.acquire()
    assert read_run(run_folder).problems == (), "a line that is being written is no damage"
    owner.release()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"epoch 1, loss 3.2",
        b"[1, 2]",
        b"{}",
        b'{"step": "4"}',
        b'{"step": true}',
        b'{"step": -1}',
        b'{"step": 1' + b"0" * 400 + b"}",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_lines_of_another_log(run_folder, line):
    content = (run_folder / "log.jsonl").read_bytes()
    record, sentence = damaged(run_folder, "log.jsonl", line + b"\n" + content + line + b"\n")
    assert "line 1 and 1 others" in sentence
    assert record.summary().best == 30.0


@pytest.mark.parametrize("value", ['"high"', "true", "null", "NaN", "1e999", "[1]", "1" + "0" * 400])
def test_scores_that_are_no_numbers_are_left_out(run_folder, value):
    line = f'{{"step": 900, "kind": "evaluation", "loss": 1.0, "bleu": {value}}}\n'
    (run_folder / "log.jsonl").write_text(line + (run_folder / "log.jsonl").read_text())
    assert read_run(run_folder).summary().best == 30.0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"training": {}, "training": {}}'])
def test_a_damaged_config(run_folder, content):
    record, _ = damaged(run_folder, "config.json", content)
    found = record.summary()
    assert (found.task, found.num_steps, found.metric, found.step) == (None, None, "loss", 200)
    assert found.best == 1.5, "the loss, as the metric is not known"


@pytest.mark.parametrize("config", [{}, {"training": 3, "task": []}, {"training": {"metric": 1, "num_steps": "many"}}])
def test_a_config_of_something_else(run_folder, config):
    (run_folder / "config.json").write_text(json.dumps(config))
    found = read_run(run_folder).summary()
    assert (found.task, found.num_steps, found.metric) == (None, None, "loss")


def test_a_missing_config(run_folder):
    (run_folder / "config.json").unlink()
    record = read_run(run_folder)
    assert record.problems == (f"{run_folder}/config.json is missing; what the run was to do is not known.",)
    assert record.summary().step == 200


@pytest.mark.parametrize("content", [b"{", b'"done"'])
def test_a_damaged_result(run_folder, content):
    assert damaged(run_folder, "finished.json", content)[0].state == "stopped"


def test_a_pipe_is_not_waited_for(run_folder):
    (run_folder / "timing.jsonl").unlink()
    os.mkfifo(run_folder / "timing.jsonl")
    (sentence,) = read_run(run_folder).problems
    assert sentence.startswith(f"{run_folder}/timing.jsonl can't be read (Not a regular file)")


FILES = ("config.json", "log.jsonl", "timing.jsonl", "finished.json", "owner.json")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(FILES), st.integers(0, 4000), st.binary(max_size=6)), max_size=4))
def test_any_damage_leaves_a_summary(tmp_path_factory, damages):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    write_run(folder, [*training(3.0), *evaluations(10.0)], [{"step": 50, "kind": "train", "minutes": 2.0}])
    (folder / "finished.json").write_text('{"scores": {"bleu": 9.0}}')
    for name, place, content in damages:
        before = (folder / name).read_bytes() if (folder / name).exists() else b""
        (folder / name).write_bytes(before[:place] + content + before[place + len(content) :])
    found = read_run(folder).summary()
    assert found.state in ("running", "finished", "stopped", "empty")
    assert found.best is None or math.isfinite(found.best)
    shutil.rmtree(folder)


# Searching for runs.


def test_runs_are_found_at_any_depth_in_natural_order(tmp_path):
    for name in ("trials/10", "trials/9", "trials/9/checkpoints/inner", "a/b/c", ".hidden/x", "trials/best"):
        write_run(tmp_path / name, training(1.0)) if "checkpoints" not in name else None
    write_run(tmp_path / "trials" / "9" / "profile" / "inner", training(1.0))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text("{}")
    (tmp_path / "trials" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == [
        "a/b/c",
        "trials/9",
        "trials/10",
        "trials/best",
    ]
    assert find_runs(tmp_path / "trials" / "9") == [tmp_path / "trials" / "9"]


def test_folders_without_runs(tmp_path, trained):
    (tmp_path / "file").write_text("")
    (tmp_path / "none").mkdir()
    folder, _ = trained
    for path, expected in [
        (tmp_path / "nowhere", "nowhere can't be read (No such file or directory)"),
        (tmp_path / "file", "file is not a folder"),
        (tmp_path / "none", "none holds no run"),
        (folder / "model", "is a model folder, not a run; transformer-jax info"),
    ]:
        with pytest.raises(UserError) as caught:
            find_runs(path)
        assert expected in str(caught.value)
        assert not is_run(path)
        with pytest.raises(UserError, match="is not the folder of a run"):
            read_run(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    write_run(tmp_path / "a", training(1.0))
    (tmp_path / "b").mkdir(mode=0)
    told = []
    assert find_runs(tmp_path, told.append) == [tmp_path / "a"]
    assert told == [f"{tmp_path}/b can't be read (Permission denied); runs in it are left out."]


def test_a_run_in_a_bucket(bucket):
    folder = as_path("gs://bucket/runs/a")
    lines = "".join(json.dumps(line) + "\n" for line in evaluations(10.0, 20.0))
    config = {"task": "translation", "training": {"metric": "bleu", "num_steps": 300}}
    (folder / "config.json").write_bytes(json.dumps(config).encode())
    (folder / "log.jsonl").write_bytes(lines.encode())
    (folder / "owner.json").write_bytes(b'{"machine": "another", "pid": 1}')
    assert [str(path) for path in find_runs("gs://bucket/runs")] == ["gs://bucket/runs/a"]
    found = read_run("gs://bucket/runs/a").summary()
    assert (found.path, found.state, found.best, found.num_steps) == ("gs://bucket/runs/a", "stopped", 20.0, 300)
    assert found.problems == ()


@pytest.mark.parametrize("task", ["translation", "classification", "couplet"])
def test_runs_of_release_0_1_0(task, tmp_path):
    with tarfile.open(FIXTURES / f"{task}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    found = read_run(tmp_path / task).summary()
    assert (found.state, found.task, found.step, found.num_steps) == ("stopped", task, 4, 8)
    assert found.metric == ("accuracy" if task == "classification" else "loss")
    assert found.problems == ()


def test_reading_imports_no_jax(tmp_path):
    write_run(tmp_path / "run", evaluations(10.0))
    write_lines(tmp_path / "run" / "timing.jsonl", [])
    code = (
        "import sys; sys.modules['jax'] = None; from transformer_jax.experiments.runs import *; "
        f"print(read_run(find_runs({str(tmp_path)!r})[0]).summary().best)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "10.0\n"
