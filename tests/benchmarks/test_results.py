import dataclasses
import json

import pytest

from benchmarks import __main__ as command
from benchmarks.results import OURS, Record, compare, emit, installed_versions, read


def records(**options) -> list[Record]:
    values = {OURS: [10.0, 30.0, 20.0], "torch": [5.0, 4.0, 6.0]}
    return list(compare("train", "toy", "tokens/s", values, work="a toy", device="none", **options))


def test_rates_and_times_give_ratios_the_right_way_round():
    ours, torch = records(more_is_better=True)
    assert (ours.peer, ours.value, ours.ratio) == (None, 20.0, None)
    assert (torch.peer, torch.value, torch.ratio) == ("torch", 5.0, 4.0)
    assert records(more_is_better=False)[1].ratio == 0.25
    assert ours.work == "a toy; median of 3"


def test_a_record_is_a_json_object_with_the_promised_fields(tmp_path, capsys):
    out = tmp_path / "folder" / "out.jsonl"
    for record in records(more_is_better=True):
        emit(record, out)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    fields = ["bench", "subject", "peer", "unit", "value", "ratio", "work", "device", "versions"]
    assert [list(one) for one in printed] == [fields, fields]
    assert read(out) == records(more_is_better=True)
    assert printed[0]["versions"] == installed_versions()
    assert {"python", "jax", "flax"} <= set(installed_versions())


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="not a peer"):
        dataclasses.replace(records(more_is_better=True)[0], peer="keras")


def test_the_command_runs_what_is_named_and_says_what_is_left_out(monkeypatch, tmp_path, capsys):
    class Module:
        @staticmethod
        def run(settings):
            settings.folder("multi30k")
            yield from records(more_is_better=True)

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Module)
    assert command.main(["train", "--data", str(tmp_path), "--quick"]) == 1
    assert "--data" in capsys.readouterr().err
    (tmp_path / "multi30k").mkdir()
    assert command.main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]) == 0
    assert len(read(tmp_path / "out.jsonl")) == len(capsys.readouterr().out.splitlines()) == 2


def test_one_error_loses_nothing_of_the_others(monkeypatch, tmp_path, capsys):
    pages = []

    class Module:
        @staticmethod
        def run(settings):
            assert settings.quick
            yield from records(more_is_better=True)
            raise RuntimeError("no luck")

    class Other:
        @staticmethod
        def run(settings):
            yield dataclasses.replace(records(more_is_better=True)[0], bench="quality")

    modules = {"benchmarks.train": Module, "benchmarks.quality": Other}
    monkeypatch.setattr(command.importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(command.page, "write", lambda path, found, *_: pages.append([one.bench for one in found]))
    assert command.main(["train", "quality", "--quick", "--page", str(tmp_path / "page.md")]) == 1
    printed = capsys.readouterr()
    assert "RuntimeError: no luck" in printed.err
    assert [json.loads(line)["work"] for line in printed.out.splitlines()] == [
        "quick: a toy; median of 3",
        "quick: a toy; median of 3",
        "quick: a toy; median of 3",
    ]
    assert pages == [["train", "train"], ["train", "train", "quality"]]


def test_the_page_names_the_command_without_paths_of_this_machine(monkeypatch, tmp_path):
    class Module:
        @staticmethod
        def run(settings):
            yield from records(more_is_better=True)

    monkeypatch.setattr(command.importlib, "import_module", lambda name: Module)
    page, out = tmp_path / "page.md", tmp_path / "out.jsonl"
    options = ["--data", str(tmp_path), "--model", str(tmp_path), "--out", str(out), "--page", str(page)]
    assert command.main(["train", *options]) == 0
    text = page.read_text("utf-8")
    assert "    python -m benchmarks train --threads 2 --data DATA --model MODEL\n" in text
    assert str(tmp_path) not in text
    assert "earlier runs" not in text
    assert command.main(["train", "--quick", "--threads", "1", "--minutes", "0.5", *options]) == 0
    text = page.read_text("utf-8")
    assert "    python -m benchmarks train --quick --threads 1 --minutes 0.5 --data DATA --model MODEL\n" in text
    assert "and earlier runs with the same records. Do not edit by hand." in text
    assert "quick: " not in text
