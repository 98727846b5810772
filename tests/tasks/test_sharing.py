"""Commands whose texts are dealt to several processes, which are played here by one."""

import json

import pytest

from tests.distributed.launch import free_port
from tests.outcomes import as_lines, refused
from tests.tasks.toys import TEXTS
from transformer_jax.system import distributed
from transformer_jax.system.distributed import lifecycle
from transformer_jax.tasks.translation.translator import Translation, Translator

COUNT = 3
FILLED = [text for text in TEXTS if text.strip()]
UPPERS = ["天", "春风有雨", "龘鬱彁", "山山水水，来来去去", "天 地", "hello", "日月"]


@pytest.fixture
def place():
    """Of the process that is played; tests change it."""
    return {"index": 0}


@pytest.fixture
def run_dealt(run, monkeypatch, place):
    """As `run`, but one of three processes; beside its result it gives what they were to agree on."""
    agreed = []

    def deal(work, items):
        shares = [json.loads(json.dumps(work(list(items[i::COUNT])))) for i in range(COUNT)]
        return [shares[i % COUNT][i // COUNT] for i in range(len(items))]

    def call(command, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "process_count", lambda: COUNT)
            patch.setattr(distributed, "is_main", lambda: place["index"] == 0)
            patch.setattr(distributed, "initialize", lambda **_: None)
            patch.setattr(distributed, "barrier", lambda: None)
            patch.setattr(distributed, "assert_equal", agreed.append)
            patch.setattr(distributed, "parallel_map", deal)
            agreed.clear()
            return run(command, *arguments, **options), dict(*agreed)

    return call


@pytest.fixture
def pairs(tmp_path):
    """Options that name two aligned files."""

    def write(sources, references):
        for name, lines in (("source", sources), ("reference", references)):
            (tmp_path / name).write_text(as_lines(lines), encoding="utf-8")
        return ["--source", tmp_path / "source", "--reference", tmp_path / "reference"]

    return write


@pytest.mark.parametrize(
    ("command", "texts", "options"),
    [
        ("translate", TEXTS, []),
        ("translate", TEXTS, ["--n-best", 2]),
        ("translate", TEXTS, ["--alignment"]),
        ("translate", TEXTS[:1], []),
        ("translate", [], []),
        ("classify", FILLED, []),
        ("classify", FILLED, ["--json", "--batch-size", 2]),
        ("classify", TEXTS, ["--json"]),
        ("couplet", [*UPPERS[:2], "", *UPPERS[2:]], []),
        ("couplet", UPPERS, ["-n", 3, "--explain", "--beam", 3]),
    ],
)
def test_what_is_dealt_is_printed_as_by_one_process(run, run_dealt, command, texts, options):
    lines = as_lines(texts).encode()
    expected = run(command, *options, stdin=lines)
    assert expected[0] == 0
    assert run_dealt(command, *options, stdin=lines)[0] == expected


def without_seconds(result):
    status, out, err = result
    return status, json.loads(out) | {"seconds": 0}, err


@pytest.mark.parametrize(
    ("model", "sources", "references"),
    [("translator", TEXTS, [*TEXTS[:0:-1], "abc"]), ("couplet_writer", UPPERS, [*UPPERS[:0:-1], "来去"])],
)
def test_an_evaluation_is_that_of_one_process(run, run_dealt, request, pairs, model, sources, references):
    arguments = [*pairs(sources, references), "--samples", 3]
    model = request.getfixturevalue(model)
    expected = without_seconds(run("evaluate", *arguments, model=model))
    found, agreed = run_dealt("evaluate", *arguments, model=model)
    status, report, err = without_seconds(found)
    scores, of_one = (each.get("all", each) for each in (report, expected[1]))
    for name in ("perplexity_per_token", "perplexity_per_character"):
        assert scores.pop(name) == pytest.approx(of_one.pop(name), rel=1e-5)
    assert (status, report, err) == expected
    assert agreed["--samples"] == 3


def test_an_evaluation_of_a_classifier(run, run_dealt, place, classifier, tmp_path):
    rows = zip(["bee", "cat", "dog", "bee", "cat"], FILLED, strict=True)
    data = tmp_path / "data.csv"
    data.write_text("label,text\n" + as_lines(",".join(row) for row in rows), encoding="utf-8")
    picture = tmp_path / "confusion.svg"
    arguments = ["evaluate", "--data", data]
    expected = without_seconds(run(*arguments, model=classifier))
    place["index"] = 1
    drawing = ["--picture", picture, "--plots", tmp_path / "pictures"]
    assert run_dealt(*arguments, *drawing, model=classifier)[0] == (0, "", "")
    assert list(tmp_path.iterdir()) == [data]
    place["index"] = 0
    found, _ = run_dealt(*arguments, *drawing, model=classifier)
    assert picture.exists()
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    report = without_seconds(found)[1]
    error = report.pop("expected_calibration_error")
    assert error == pytest.approx(expected[1].pop("expected_calibration_error"), rel=1e-5)
    assert report == expected[1]


def test_attention_is_drawn_by_one_process(run_dealt, tmp_path):
    refused(run_dealt("translate", "--attention", tmp_path / "a.html", *TEXTS)[0], "--attention", "single process")


def test_only_the_first_process_writes(run_dealt, place, tmp_path):
    for index in (1, 2):
        place["index"] = index
        assert run_dealt("translate", *TEXTS)[0] == (0, "", "")
        assert run_dealt("couplet", "--output", tmp_path / "out.txt", *UPPERS)[0] == (0, "", "")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "texts", "expected"),
    [
        ("translate", ["abc"] * 4 + ["a" * 100_000], "Line 5 has 100,000 characters"),
        ("couplet", ["天"] * 4 + ["天" * 2_000], "Line 5 has 2,001 tokens"),
    ],
)
def test_a_bad_line_is_named_by_its_number_among_all(run_dealt, command, texts, expected):
    refused(run_dealt(command, *texts)[0], expected)


def test_a_bad_pair_is_named_by_its_number_among_all(run_dealt, pairs):
    refused(run_dealt("evaluate", *pairs(["abc"] * 5, ["abc"] * 4 + ["a" * 40_000]))[0], "Target line 5 has 40,000")
    refused(run_dealt("evaluate", *pairs(["abc"] * 3 + ["a" * 40_000], ["abc"] * 4))[0], "Source line 4 has 40,000")


@pytest.mark.parametrize(
    ("command", "option", "named"),
    [
        ("translate", ["--stream"], "--stream"),
        ("translate", ["--temperature", 1], "--temperature"),
        ("couplet", ["--temperature", 1], "--temperature"),
        ("couplet", ["--sample"], "--sample"),
    ],
)
def test_what_needs_all_texts_in_one_process_is_refused(run_dealt, command, option, named):
    refused(run_dealt(command, *option, "天")[0], named, "start a single process")


def test_what_must_be_the_same_at_all_processes(run_dealt, translator, tmp_path, monkeypatch):
    monkeypatch.setattr(Translator, "search", lambda _, texts, **__: [[Translation("", 0.0, 0.0)]] * len(texts))

    def agreed(*arguments, **options):
        return run_dealt("translate", *arguments, **options)[1]

    def differ(*arguments, **options):
        other = agreed(*arguments, **options)
        return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}

    one = agreed("abc", "b")
    assert one["The input"].startswith("2 texts")
    assert differ("abc", "b") == set()
    assert differ(stdin=b"abc\nb\n") == set()
    assert differ("--process_id", 1, "--output", tmp_path / "out", "abc", "b") == set()
    assert differ("abc", "c") == {"The input"}
    assert differ("--n-best", 2, "--beam", 3, "abc", "b") == {"--n-best", "--beam"}
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in translator.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert differ("abc", "b", model=copied) == set()
    config = json.loads((copied / "config.json").read_bytes())
    del config["sha256"]["config.json"]
    (copied / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert differ("abc", "b", model=copied) == {"The model"}


def test_a_coordinator_that_is_not_there(run, monkeypatch):
    monkeypatch.setattr(lifecycle, "MEETING_SECONDS", 5.1)
    place = ["--coordinator", f"localhost:{free_port()}", "--num_processes", 2, "--process_id", 1]
    for command in ("translate", "classify", "couplet", "evaluate"):
        refused(run(command, *place), "No process 0 answers at localhost:")
    refused(run("translate", *place[:3], 3, "--process_id", 3), "--process_id is 3", "0 to 2")
