import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from transformer_jax.training import logging
from transformer_jax.training.logging import RunLog

NAMES = ("log.jsonl", "timing.jsonl", "samples.jsonl")


def write(log, steps):
    for step in steps:
        log.train(step, {"loss": 1 / step, "lr": 0.1 * step, "epoch": 0}, {"tokens_per_second": 1000.5, "minutes": 0.1})
        if step % 2 == 0:
            evaluate(log, step)


def evaluate(log, step):
    log.evaluation(step, {"bleu": 3.0 * step, "signature": "größe"}, {"seconds": 2.0})
    log.samples(step, [("zwölf", "twelve", "twelve"), ("对联", "[bold]a[/bold]", "b")], shows=True)


def records(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def events(folder):
    """All events below `folder`, by reading the record format: length, its checksum, data, their checksum."""
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def scalars(folder):
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def test_files(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=2) as log:
        write(log, [1, 2])
    assert records(tmp_path / "log.jsonl") == [
        {"step": 1, "kind": "train", "loss": 1.0, "lr": 0.1, "epoch": 0},
        {"step": 2, "kind": "train", "loss": 0.5, "lr": 0.2, "epoch": 0},
        {"step": 2, "kind": "evaluation", "bleu": 6.0, "signature": "größe"},
    ]
    assert [set(record) for record in records(tmp_path / "timing.jsonl")] == [
        {"step", "kind", "tokens_per_second", "minutes"},
        {"step", "kind", "tokens_per_second", "minutes"},
        {"step", "kind", "seconds"},
    ]
    assert records(tmp_path / "samples.jsonl")[0] == {
        "step": 2,
        "source": "zwölf",
        "output": "twelve",
        "reference": "twelve",
    }
    curves = scalars(tmp_path / "tensorboard")
    assert curves["train/loss", 2] == 0.5
    assert curves["evaluation/bleu", 2] == 6.0
    assert curves["train/tokens_per_second", 1] == 1000.5
    assert not any("signature" in tag for tag, _ in curves)


def test_the_compiled_step_is_described(tmp_path, capsys):
    with RunLog(tmp_path, first_step=3, num_steps=5, verbose=True) as log:
        log.program(4, ["8 MB", "no collectives"])
    assert records(tmp_path / "timing.jsonl") == [{"step": 4, "kind": "program", "description": "8 MB; no collectives"}]
    assert capsys.readouterr().out == "8 MB\nno collectives\n"


def test_lines_are_there_at_once(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=2) as log:
        write(log, [1, 2])
        assert len(records(tmp_path / "log.jsonl")) == 3
        assert len(records(tmp_path / "samples.jsonl")) == 2


def test_what_is_no_number_is_null(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=1) as log:
        log.train(1, {"loss": math.nan, "best": -math.inf, "lr": 1.0}, {"speed": math.inf})
    assert records(tmp_path / "log.jsonl") == [{"step": 1, "kind": "train", "loss": None, "best": None, "lr": 1.0}]
    assert records(tmp_path / "timing.jsonl") == [{"step": 1, "kind": "train", "speed": None}]


@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "kind": "tra', '{"step": 7, "source": "ö'.encode()[:-1], b"\n\n"])
def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path, torn):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with RunLog(whole, first_step=0, num_steps=8) as log:
        write(log, range(1, 9))
    with RunLog(parts, first_step=0, num_steps=8) as log:
        write(log, range(1, 7))
    for name in NAMES:
        with (parts / name).open("ab") as file:
            file.write(torn)
    # The last checkpoint was of step 4, and the evaluation comes after saving.
    with RunLog(parts, first_step=4, num_steps=8) as log:
        left = [(record["step"], record["kind"]) for record in records(parts / "log.jsonl")]
        assert left == [(1, "train"), (2, "train"), (2, "evaluation"), (3, "train"), (4, "train")]
        evaluate(log, 4)
        write(log, range(5, 9))
    for name in NAMES:
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert (whole / name).read_bytes()
    assert sorted(path.name for path in parts.iterdir()) == sorted([*NAMES, "tensorboard"])


def test_a_line_that_only_lacks_its_end_stays(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}')
    RunLog(tmp_path, first_step=3, num_steps=4).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_tensorboard_hides_what_was_cut(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=8) as log:
        write(log, range(1, 7))
    with RunLog(tmp_path, first_step=4, num_steps=8) as log:
        write(log, range(5, 9))
    starts = [event for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    # The first log, whose file is replaced if both began within a second, hides what came before step 1.
    assert [(event.step, event.session_log.status) for event in starts] in ([(5, 1)], [(1, 1), (5, 1)])


def curves_of(folder):
    """(kind, name of a value, step) of every value, however often, with its time."""
    return [(v.tag, event.step, event.wall_time) for event in events(folder) for v in event.summary.value]


def test_tensorboard_is_told_at_once(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=8) as log:
        for step in range(1, 7):
            write(log, [step])
            assert scalars(tmp_path / "tensorboard")["train/loss", step] == pytest.approx(1 / step)


def test_in_tensorboard_no_step_stands_twice(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.of.an.earlier.release").write_bytes(b"")
    (tmp_path / "tensorboard" / "notes.txt").write_bytes(b"mine")
    with RunLog(tmp_path, first_step=0, num_steps=8) as log:
        write(log, range(1, 7))
    with RunLog(tmp_path, first_step=4, num_steps=8) as log:
        evaluate(log, 4)
        write(log, range(5, 9))
    (tmp_path / "tensorboard" / "notes.txt").unlink()
    found = [(tag, step) for tag, step, _ in curves_of(tmp_path / "tensorboard")]
    train = [(f"train/{name}", step) for step in range(1, 9) for name in ("loss", "lr", "epoch")]
    train += [(f"train/{name}", step) for step in range(1, 9) for name in ("tokens_per_second", "minutes")]
    evaluations = [(f"evaluation/{name}", step) for step in (2, 4, 6, 8) for name in ("bleu", "seconds")]
    assert sorted(found) == sorted(train + evaluations)


def test_what_is_told_again_keeps_its_distance_in_time(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=4) as log:
        for step, minutes in ((1, 10.0), (2, 20.0), (3, 40.0)):
            log.train(step, {"loss": 1.0}, {"minutes": minutes})
        log.evaluation(3, {"bleu": 1.0}, {})
    with RunLog(tmp_path, first_step=4, num_steps=5) as log:
        log.train(5, {"loss": 1.0}, {"minutes": 41.0})
    times = {(tag, step): seconds for tag, step, seconds in curves_of(tmp_path / "tensorboard")}
    last = times["train/loss", 3]
    assert times["train/loss", 1] == pytest.approx(last - 30 * 60)
    assert times["train/loss", 2] == pytest.approx(last - 20 * 60)
    assert times["evaluation/bleu", 3] == pytest.approx(last)
    assert times["train/loss", 5] >= last


def test_norms_by_layer_are_not_shown(tmp_path, capsys):
    with RunLog(tmp_path, first_step=0, num_steps=4) as log:
        log.train(1, {"loss": 1.5, "param_norm/encoder.0.self_attention": 2.5}, {})
    assert capsys.readouterr().out == "Step 1/4: loss 1.5\n"
    assert records(tmp_path / "log.jsonl")[0]["param_norm/encoder.0.self_attention"] == 2.5
    assert scalars(tmp_path / "tensorboard")["train/param_norm/encoder.0.self_attention", 1] == 2.5


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    with RunLog(tmp_path, first_step=0, num_steps=2000) as log:
        log.say("Good [morning]")
        log.train(1000, {"loss": 1.23456, "lr": 5e-4}, {"tokens_per_second": 12345.6})
        log.evaluation(1000, {"bleu": 30.123}, {"seconds": 1.0})
        log.samples(1000, [("a", "b", "c")], shows=True)
        log.samples(1000, [("d", "e", "f")], shows=False)
        log.show_samples([("g", "h", "h")])
        log.detail("seen with --verbose alone")
        log.advance(1001)
    assert capsys.readouterr().out.splitlines() == [
        "Good [morning]",
        "Step 1,000/2,000: loss 1.235, lr 0.0005, tokens per second 12,346",
        "Step 1,000, validation: bleu 30.12",
        "  source     a",
        "  output     b",
        "  reference  c",
        "  source     g",
        "  output     h",
        "  reference  as the output",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with RunLog(tmp_path, first_step=500, num_steps=2000) as log:
        log.say("Good [morning]")
        log.train(1000, {"loss": 1.23456, "lr": 5e-4}, {"tokens_per_second": 12345.6})
        log.train(1500, {"loss": 0.0011111, "lr": 5e-4}, {"tokens_per_second": 12345.6})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "Good [morning]" in shown
    assert re.search(r"500/2,000 ", shown)
    assert re.search(r"1,500/2,000 .*loss 0\.001111, 12,346 tokens/s +0:00:0\d left", shown)
    assert "lr" not in shown
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= 80


def test_the_bar_moves_between_the_lines_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    now = 0.0
    monkeypatch.setattr("transformer_jax.training.logging.time.monotonic", lambda: now)
    with RunLog(tmp_path, first_step=0, num_steps=100) as log:
        bar = log._display._progress.tasks[0]
        for step in range(1, 41):
            now = step / 10  # ten steps a second
            log.advance(step)
            assert step - bar.completed <= 10, "at most a second old"


def test_details_are_shown_by_a_verbose_log(tmp_path, capsys):
    for verbose in (False, True):
        with RunLog(tmp_path, first_step=0, num_steps=10, verbose=verbose) as log:
            log.detail("a detail")
            log.program(1, ["4 GB"])
    assert capsys.readouterr().out == "a detail\n4 GB\n"
    assert records(tmp_path / "timing.jsonl")[0]["description"] == "4 GB"


def test_the_final_score_is_in_the_log_and_in_tensorboard(tmp_path):
    with RunLog(tmp_path, first_step=0, num_steps=2) as log:
        write(log, [1, 2])
        log.final(2, {"bleu": 41.5, "parameters": "step 2"}, {"minutes": 1.5})
    assert records(tmp_path / "log.jsonl")[-1] == {"step": 2, "kind": "final", "bleu": 41.5, "parameters": "step 2"}
    assert records(tmp_path / "timing.jsonl")[-1] == {"step": 2, "kind": "final", "minutes": 1.5}
    assert scalars(tmp_path / "tensorboard")["final/bleu", 2] == 41.5


def test_events_stay_on_this_machine_whatever_the_name(tmp_path, monkeypatch):
    """To tensorboardX `gs:x` and `s3:x` are buckets."""
    monkeypatch.chdir(tmp_path)
    for name in ("gs:x", "s3:x"):
        folder = Path(name)
        folder.mkdir()
        with RunLog(folder, first_step=0, num_steps=2) as log:
            write(log, [1, 2])
        assert len(list(events(tmp_path / name / "tensorboard"))) > 2


@pytest.mark.parametrize(
    ("folder", "name"), [("runs/a", "a"), ("sweeps/first/trials/003", "first-003"), ("x/003", "003")]
)
def test_trackers_tell_the_trials_of_sweeps_apart(tmp_path, monkeypatch, folder, name):
    named = []
    monkeypatch.setattr(logging, "Trackers", lambda *_, name, **__: named.append(name) or SimpleNamespace(close=list))
    (tmp_path / folder).mkdir(parents=True)
    RunLog(tmp_path / folder, first_step=0, num_steps=1).close()
    assert named == [name]
