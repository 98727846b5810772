"""Tables of `tpu_compile`, between two marks of a page: `python -m benchmarks tpu_compile --page FILE`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.results import Record
from benchmarks.tpu_chips import NOT_THERE

BEGIN, END = "<!-- tpu_compile begins -->", "<!-- tpu_compile ends -->"
"""The text between them is replaced."""

Figures = Mapping[tuple[str, str], float]
"""Figures of a program, by name and unit."""


def write(path: Path, records: Sequence[Record], command: str, earlier: Sequence[Record] = ()) -> None:
    """Write the tables into the page; the latest figures of a program count.

    Args:
        path: of the page, which contains both marks.
        records: of this run.
        command: of this run.
        earlier: records of earlier runs.

    Raises:
        ValueError: if the page lacks a mark.
    """
    page = path.read_text("utf-8")
    if not 0 <= page.find(BEGIN) < page.find(END):
        raise ValueError(f"{path} has no {BEGIN} before {END}; add both where the tables belong.")
    before, _, rest = page.partition(BEGIN)
    lines = "\n".join(_tables([*earlier, *records], command))
    path.write_text(f"{before}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _tables(records: Sequence[Record], command: str) -> Iterator[str]:
    latest = {(r.device, r.subject, r.unit): r for r in records if r.bench == "tpu_compile"}.values()
    versions = sorted({f"jax {r.versions.get('jax')}, libtpu {r.versions.get('libtpu')}" for r in latest})
    yield f"Written by `{command}` with {'; '.join(versions)}; do not edit by hand. Figures are per chip."
    for device in dict.fromkeys(record.device for record in latest):
        programs: dict[str, dict[tuple[str, str], float]] = {}
        for record in latest:
            program, _, figure = record.subject.rpartition(": ")
            if record.device == device:
                programs.setdefault(program, {})[figure, record.unit] = record.value
        memory = next(iter(programs.values()))["has", "GB"]
        yield from ("", f"### {device.removeprefix(NOT_THERE)}, {memory:g} GB a chip", "")
        yield "| program | needs | computes | units filled | moves | sends | arithmetic | memory | network | bound by |"
        yield "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |"
        for program, figures in programs.items():
            yield f"| {' | '.join([program, *_cells(figures)])} |"


def _cells(figures: Figures) -> list[str]:
    need, has = figures["needs", "GB"], figures["has", "GB"]
    if ("moves", "GB") not in figures:
        return [f"over {need:.1f} GB: does not fit", *[""] * 8]
    least = {what: figures[f"bound by {what}", "ms"] for what in ("arithmetic", "memory", "network")}
    computes = f"{_short(figures['computes', 'GFLOP'])} GFLOP"
    if ("computes", "times the formula") in figures:
        computes += f", {figures['computes', 'times the formula']:.2f} of formula"
    sent = {name.removeprefix("sends by "): size for (name, unit), size in figures.items() if unit == "MB"}
    return [
        f"{need:.1f} GB, {need / has:.0%}",
        computes,
        f"{figures['fills its units', 'share']:.0%}",
        f"{_short(figures['moves', 'GB'])} GB",
        ", ".join(f"{kind} {_short(size)} MB" for kind, size in sent.items() if size >= 0.1) or "nothing",
        *(f"{_short(value)} ms" for value in least.values()),
        max(least, key=lambda what: least[what]),
    ]


def _short(value: float) -> str:
    """The value with three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
