"""Tables and curves fit the terminal and show the numbers of the runs."""

import itertools
import re
import unicodedata

import pytest
from rich.cells import cell_len

from tests.experiments.folders import evaluations, training, write_run
from transformer_jax.data.tokenizers import KINDS
from transformer_jax.experiments.compare import compare, read_runs
from transformer_jax.experiments.tables import as_text, plot, rounded, shortened


def shown(tmp_path, width=80, metric=None):
    return as_text(compare(read_runs([str(tmp_path)]), metric), width)


def test_the_table_has_a_row_for_each_run(tmp_path):
    timing = [{"step": 50, "kind": "train", "minutes": 12.34, "tokens_per_second": 4321.0}]
    final = {"step": 200, "kind": "final", "bleu": 31.26}
    write_run(tmp_path / "a", [*training(3.0, 2.0), *evaluations(10.0, 30.5), final], timing)
    write_run(tmp_path / "b", num_steps=100_000)
    lines = shown(tmp_path).splitlines()
    assert lines[0].split() == ["run", "state", "step", "bleu", "at", "step", "final", "minutes", "tokens/s"]
    assert lines[1].split() == ["a", "stopped", "200/400", "30.5", "200", "31.26", "12.3", "4,321"]
    assert lines[2].split() == ["b", "empty", "0/100k", "–", "–", "–", "–", "–"]
    assert {len(line) for line in lines[:3]} == {len(lines[0])}, "columns of numbers end at the same place"


def test_each_metric_has_a_table_of_its_own(tmp_path):
    write_run(tmp_path / "a", evaluations(10.0))
    write_run(tmp_path / "b", evaluations(0.5, metric="accuracy"), task="classification", metric="accuracy")
    write_run(tmp_path / "c", evaluations(20.0), lr=2.0)
    text = shown(tmp_path)
    assert [line.split()[3] for line in text.splitlines() if line.startswith("run ") and "state" in line] == [
        "bleu",
        "accuracy",
    ]
    assert "classification" not in text, "tasks differ between the tables, not within one"
    by_loss = shown(tmp_path, metric="loss")
    assert by_loss.count("tokens/s") == 1
    assert "classification" in by_loss


def test_differences_have_rows_for_runs_or_fields_whichever_are_fewer(tmp_path):
    for number, lr in enumerate((1.0, 0.5, 0.123456789), 1):
        write_run(tmp_path / f"trial-{number}", lr=lr)
    text = shown(tmp_path)
    assert re.search(r"^ +optim\.\nrun +lr\ntrial-1  1\ntrial-2  0\.5\ntrial-3  0\.123457\n", text, re.M)
    write_run(tmp_path / "two" / "a", lr=1.0, num_steps=100, metric="chrf")
    write_run(tmp_path / "two" / "b", lr=2.0, num_steps=200, metric="bleu")
    text = shown(tmp_path / "two")
    assert "training.metric" not in text, "they have tables of their own"
    (tmp_path / "two" / "b" / "log.jsonl").write_text('{"step": 1, "kind": "evaluation", "loss": 1.0}\n')
    lines = [line.split() for line in shown(tmp_path / "two", metric="loss").splitlines()]
    assert ["a", "b"] in lines
    assert ["optim.lr", "1", "2"] in lines
    assert ["training.metric", "chrf", "bleu"] in lines


def test_equal_configs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert "The configs do not differ." in shown(tmp_path)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("metric", ["bleu", "expected_calibration_error"])
def test_everything_fits(tmp_path, width, metric):
    parts = ["a" * 50, "对联" * 20, "x/y/z/" + "long-name-" * 6]
    for number, part in enumerate(parts):
        steps = 10 ** (number + 3)
        log = [
            *training(3.0, 1e30, every=steps // 2 - 1),
            *evaluations(0.123456, 98.7, metric=metric, every=steps // 3),
        ]
        timing = [{"step": 1, "kind": "train", "minutes": 12345.6, "tokens_per_second": 1234567.8}]
        write_run(tmp_path / part, log, timing, metric=metric, num_steps=steps + 1, lr=0.1**number)
    for number in range(9):
        write_run(tmp_path / f"more-{number}", training(2.0), metric=metric, num_steps=number + 1, lr=number / 7)
    lines = shown(tmp_path, width).splitlines()
    assert max(map(cell_len, lines)) <= width
    rows = [line for line in lines if "1,235k" in line]
    assert len(rows) == 3, "no number is cut off"


def test_names_and_values_cannot_control_the_terminal(tmp_path):
    write_run(tmp_path / "a\x1b[2J\nb", training(1.0), lr=2.0)
    write_run(tmp_path / "b", training(1.0))
    text = shown(tmp_path)
    assert "\x1b" not in text
    assert "a\\x1b[2J\\nb" in text


# Curves.


def dots(text):
    """The raised dots of braille characters, by the names that Unicode gives them: (column, row), from the top left."""
    found = set()
    places = {1: (0, 0), 2: (0, 1), 3: (0, 2), 7: (0, 3), 4: (1, 0), 5: (1, 1), 6: (1, 2), 8: (1, 3)}
    for row, line in enumerate(text.splitlines()):
        assert line[0] == "│"
        for column, character in enumerate(line[1:]):
            name = unicodedata.name(character)
            for digit in name.removeprefix("BRAILLE PATTERN ").removeprefix("DOTS-").replace("BLANK", ""):
                x, y = places[int(digit)]
                found.add((2 * column + x, 4 * row + y))
    return found


def test_a_straight_line():
    raised = dots(plot([0, 100], [0.0, 1.0], 10, 5, end=100, scale=(0.0, 1.0)))
    assert raised == {(each, 19 - each) for each in range(20)}


def test_a_single_point():
    assert dots(plot([50], [5.0], 4, 2, end=100, scale=(0.0, 10.0))) == {(4, 4)}
    assert dots(plot([], [], 4, 2, end=100, scale=(0.0, 10.0))) == set()


def test_equal_values():
    raised = dots(plot([0, 10, 20], [3.0, 3.0, 3.0], 6, 1, end=20, scale=(3.0, 3.0)))
    assert raised == {(column, 0) for column in range(12)}


def test_a_curve_passes_its_points_without_gaps():
    steps, values = [0, 7, 20, 21, 60, 100], [0.0, 5.0, 1.0, 9.0, 9.5, 3.0]
    raised = dots(plot(steps, values, 30, 4, end=100, scale=(0.0, 10.0)))
    for step, value in zip(steps, values, strict=True):
        assert (round(step / 100 * 59), round((10 - value) / 10 * 15)) in raised
    by_column = {column: {y for x, y in raised if x == column} for column in range(60)}
    for left, right in itertools.pairwise(range(60)):
        assert any(abs(a - b) <= 1 for a in by_column[left] for b in by_column[right])
    for rows in by_column.values():
        assert rows == set(range(min(rows), max(rows) + 1))


def test_values_beyond_the_scale_are_drawn_at_its_edge():
    raised = dots(plot([0, 100], [-5.0, 50.0], 4, 1, end=100, scale=(0.0, 10.0)))
    assert {(0, 3), (7, 0)} <= raised


def test_a_loss_that_explodes_does_not_flatten_the_others(tmp_path):
    write_run(tmp_path / "a", training(4.0, 3.0, 2.5, 2.0, 1.5, 1.2))
    write_run(tmp_path / "b", training(4.0, 9e9))
    (high,) = re.findall(r"1\.2 to ([\d.,e+]+), 300 steps", shown(tmp_path))
    assert float(high.replace(",", "")) < 100


def test_curves_of_all_runs_have_one_scale(tmp_path):
    write_run(tmp_path / "a", evaluations(0.0, 10.0))
    write_run(tmp_path / "b", evaluations(90.0, 100.0))
    write_run(tmp_path / "c")
    lines = shown(tmp_path).splitlines()
    assert any("0 to 100, 200 steps" in line for line in lines)
    panels = [line[line.index("│") :] for line in lines if "│" in line]
    assert len(panels) == 8, "none for the run without a log"
    for text, rows in (("\n".join(panels[:4]), range(13, 16)), ("\n".join(panels[4:]), range(3))):
        assert {y for _, y in dots(text)} <= set(rows)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0, "0"), (0.123456, "0.1235"), (41.25, "41.25"), (12345.6, "12,346"), (1e30, "1e+30")],
)
def test_numbers(value, expected):
    assert rounded(value) == expected


@pytest.mark.parametrize("width", range(1, 12))
@pytest.mark.parametrize("text", ["", "abc", "abcdefghijkl", "春江明月降", "a春b江c明d月", *KINDS])
def test_shortened_texts_fit_and_keep_both_ends(text, width):
    short = shortened(text, width)
    assert cell_len(short) <= width
    if cell_len(text) <= width:
        assert short == text
    else:
        head, tail = short.split("…")
        assert text.startswith(head)
        assert text.endswith(tail)
