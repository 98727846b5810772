from dataclasses import replace

import pytest

from benchmarks import tpu_page
from benchmarks.results import Record

COMMAND = "python -m benchmarks tpu_compile"
FIGURES = [
    ("needs", "GB", 8.0),
    ("has", "GB", 16.0),
    ("computes", "GFLOP", 3328.4),
    ("computes", "times the formula", 1.0),
    ("fills its units", "share", 0.934),
    ("moves", "GB", 20.5),
    ("sends by all-gather", "MB", 143.4),
    ("sends by all-reduce", "MB", 0.01),
    ("bound by arithmetic", "ms", 16.9),
    ("bound by memory", "ms", 25.0),
    ("bound by network", "ms", 1.44),
    ("compiles", "s", 60.0),
]


def records(program="base, training step, fsdp", device="compiled for v5e:2x4", figures=FIGURES):
    return [
        Record("tpu_compile", f"{program}: {name}", None, unit, value, None, "", device, {"jax": "1", "libtpu": "2"})
        for name, unit, value in figures
    ]


def written(tmp_path, found, earlier=()):
    path = tmp_path / "page.md"
    path.write_text(f"before\n\n{tpu_page.BEGIN}\nold\n{tpu_page.END}\n\nafter\n", "utf-8")
    tpu_page.write(path, found, COMMAND, earlier)
    text = path.read_text("utf-8")
    assert text.startswith(f"before\n\n{tpu_page.BEGIN}\n")
    assert text.endswith(f"\n{tpu_page.END}\n\nafter\n")
    assert "old" not in text
    return text


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| b")]


def test_a_row_a_program(tmp_path):
    text = written(tmp_path, records())
    assert "### v5e:2x4, 16 GB a chip" in text
    assert f"`{COMMAND}` with jax 1, libtpu 2" in text
    assert rows(text) == [
        "| base, training step, fsdp | 8.0 GB, 50% | 3,328 GFLOP, 1.00 of formula | 93% | 20.5 GB | all-gather 143 MB "
        "| 16.9 ms | 25 ms | 1.44 ms | memory |"
    ]


def test_what_does_not_fit(tmp_path):
    (row,) = rows(
        written(tmp_path, records(figures=[("needs", "GB", 20.0), ("has", "GB", 16.0), ("compiles", "s", 1.0)]))
    )
    assert row == "| base, training step, fsdp | over 20.0 GB: does not fit |  |  |  |  |  |  |  |  |"


def test_each_topology_has_a_table_and_the_last_compilation_counts(tmp_path):
    later = [replace(r, value=30.0) if r.subject.endswith("by memory") else r for r in records()]
    text = written(tmp_path, later, [*records(), *records("big", "compiled for v5p:2x2x2")])
    assert text.index("### v5e:2x4") < text.index("### v5p:2x2x2")
    assert len(rows(text)) == 2
    assert "| 30 ms |" in rows(text)[0]


def test_a_page_without_marks_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"{tpu_page.END}\n{tpu_page.BEGIN}\n", "utf-8")
    with pytest.raises(ValueError, match="has no <!-- tpu_compile begins"):
        tpu_page.write(path, records(), COMMAND)
    assert path.read_text("utf-8") == f"{tpu_page.END}\n{tpu_page.BEGIN}\n"
