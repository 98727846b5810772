import re
from dataclasses import replace

import pytest

from benchmarks import page, startup
from benchmarks.results import Record
from benchmarks.targets import TARGETS, target_of

CPU = "2 threads of AMD EPYC"
SHARE = Record("roofline", "base size: training step", None, "share", 0.6, None, "work A", CPU, {"jax": "1"})
DECODE = Record(
    "decode", "1,000 sentences, beam 4", "ctranslate2", "s", 2.5, 0.9, "work B", CPU, {"jax": "1", "ctranslate2": "4"}
)


def written(path, records):
    page.write(path / "deep" / "page.md", records, "python -m benchmarks all")
    return (path / "deep" / "page.md").read_text("utf-8")


def rows(text):
    """The cells of each row of the tables, headings apart."""
    lines = [line for line in text.splitlines() if re.match(r"\| [^-|]", line) and "| figure |" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_each_figure_with_its_target(tmp_path):
    text = written(tmp_path, [SHARE, DECODE])
    assert rows(text) == [
        ["1,000 sentences, beam 4", "CTranslate2", "2.5 s", "0.90", "≥ 1", "no", "1"],
        ["base size: training step", "ours", "60.0 %", "", "≥ 50 %", "yes", "1"],
    ]
    assert "    python -m benchmarks all\n" in text
    assert "jax 1, ctranslate2 4." in text
    assert "1. work A.\n" in text
    assert "Not measured yet" in text


def test_what_was_taken_again_replaces_what_was_there(tmp_path):
    text = written(tmp_path, [SHARE, replace(SHARE, value=0.4, versions={"jax": "2"})])
    assert [row[2:6] for row in rows(text)] == [["40.0 %", "", "≥ 50 %", "no"]]
    assert "jax 2." in text


def test_a_quick_figure_does_not_replace_a_full_one(tmp_path):
    quick = replace(SHARE, value=0.3, work="quick: less")
    assert [row[2] for row in rows(written(tmp_path, [SHARE, quick]))] == ["60.0 %"]
    assert [row[2] for row in rows(written(tmp_path, [quick, SHARE]))] == ["60.0 %"]
    text = written(tmp_path, [quick, replace(quick, value=0.2)])
    assert [row[2] for row in rows(text)] == ["20.0 %"]
    assert "1. quick: less.\n" in text


def test_devices_have_sections_of_their_own(tmp_path):
    chip = replace(SHARE, device="NVIDIA H100 80GB HBM3", value=0.4)
    text = written(tmp_path, [chip, SHARE])
    assert text.index(f"## {CPU}") < text.index("## NVIDIA H100")
    assert [row[4:6] for row in rows(text)] == [["≥ 50 %", "yes"], ["≥ 45 %", "no"]]
    assert "Not measured yet" not in text


@pytest.mark.parametrize(
    ("subject", "peer", "unit", "bound"),
    [
        ("multi30k: padding", None, "share", 0.08),
        ("multi30k: later epochs, times the step", None, "times", 20),
        ("multi30k: later epochs (batching)", None, "tokens/s", None),
    ],
)
def test_targets_are_found_by_subject_and_unit(subject, peer, unit, bound):
    target = target_of(Record("pipeline", subject, peer, unit, 1.0, None, "", CPU, {}))
    assert (None if target is None else target.bound) == bound


@pytest.mark.parametrize(
    ("subject", "peer", "bound"),
    [
        ("translation, random batches of 128", "torch", 3),
        ("translation, random batches of 128", "transformers", 2),
        ("translation, our batches", "torch", 2),
        ("translation, our batches", "torch_compile", None),
        ("translation, our batches and dropout", "torch", None),
        ("classifier, random batches of 128", "torch", None),
        ("couplets, random batches of 128", "torch", None),
    ],
)
def test_targets_of_training_are_for_translation(subject, peer, bound):
    target = target_of(Record("train", subject, peer, "tokens/s", 1.0, 1.0, "", CPU, {}))
    assert (None if target is None else target.bound) == bound


def test_programs_of_training_have_a_target_and_those_beside_them_none():
    line = "Finished XLA compilation of jit(train_step) in 1 s\nStep 3/9: loss 1\n"
    targets = [
        target_of(Record("startup", f"numerals: {subject}", None, "programs", 1, None, "", CPU, {}))
        for subject in startup.programs_of(line)
    ]
    assert [None if target is None else target.bound for target in targets] == [6, None]


def test_targets_bound_from_above_or_below():
    padding, later = (next(t for t in TARGETS if t.bench == "pipeline" and t.at_most is most) for most in (True, False))
    record = Record("pipeline", "", None, "share", 0.07, None, "", CPU, {})
    assert padding.meets(record)
    assert not padding.meets(replace(record, value=0.09))
    assert later.meets(replace(record, value=20.0))
    assert not later.meets(replace(record, value=19.0))


def test_figures_are_readable():
    assert page._figure(12345.6, "tokens/s") == "12,346 tokens/s"
    assert page._figure(0.01234, "s") == "0.0123 s"
    assert page._figure(6, "programs") == "6 programs"
    assert page._figure(1.234, "exponent") == "1.23"
