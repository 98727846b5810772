"""Commands run by several processes on the loopback."""

import random

import pytest

from tests.distributed.launch import Processes
from tests.outcomes import as_lines
from tests.tasks.toys import TEXTS, write_bundle
from transformer_jax.tasks.model_folder import load

PROGRAM = """
import sys
from transformer_jax.cli import main
from transformer_jax.system import output

output.QUIET_SECONDS = 1e9  # whatever the speed of the machine
sys.argv[0], lines = "transformer-jax", sys.argv.pop(1)
if lines:
    sys.stdin = open(lines, encoding="utf-8")
sys.exit(main())
"""


@pytest.fixture
def model(tmp_path):
    return write_bundle(tmp_path / "model")


def translate(model, count, *options, lines="", **more):
    return Processes(["-c", PROGRAM, str(lines), "translate", f"--model={model}", *options], count, **more)


def test_two_processes_of_two_devices_translate_as_one(model, tmp_path):
    texts = TEXTS * 4
    lines, output = tmp_path / "lines", tmp_path / "output"
    lines.write_text(as_lines(texts), encoding="utf-8")
    first, second = translate(model, 2, f"--output={output}", lines=lines, devices=2).wait(60)
    assert [(each.status, each.out, each.err) for each in (first, second)] == [(0, "", "")] * 2
    assert output.read_text(encoding="utf-8") == as_lines(load(model).translate(texts))


def test_different_texts_are_refused_by_all(model):
    for each in translate(model, 2, own={0: ["abc", "b"], 1: ["abc", "c"]}).wait(60):
        assert (each.status, each.out) == (2, "")
        assert "transformer-jax: error: " in each.err
        assert "The input is '2 texts of SHA-256 " in each.err


@pytest.mark.slow
def test_10_000_lines_by_four_processes(model, tmp_path):
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcde ABCDE", k=draw.randint(0, 15))) for _ in range(10_000)]
    lines = tmp_path / "lines"
    lines.write_text(as_lines(texts), encoding="utf-8")
    expected = as_lines(load(model).translate(texts))
    first, *others = translate(model, 4, lines=lines).wait()
    assert [each.status for each in (first, *others)] == [0] * 4, first.err
    assert [each.out for each in others] == [""] * 3
    assert len(first.out.splitlines()) == len(texts)
    different = [
        i
        for i, pair in enumerate(zip(first.out.splitlines(), expected.splitlines(), strict=True), 1)
        if len(set(pair)) > 1
    ]
    assert different == []


@pytest.mark.slow
def test_a_first_process_that_cannot_write_ends_all_with_its_message(model, tmp_path):
    for each in translate(model, 2, f"--output={tmp_path / 'no' / 'out.txt'}", "abc").wait(60):
        assert (each.status, each.out) == (2, "")
        assert "out.txt cannot be written" in each.err
