"""The results page: records as Markdown. `python -m benchmarks ... --page FILE` writes it."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.results import Record
from benchmarks.targets import is_accelerator, target_of

ABOUT = {
    "train": "Tokens consumed by training, without padding.",
    "quality": "Time to reach the validation loss that the peer reaches.",
    "decode": "Text in, text out, with the same weights.",
    "serving": "Requests over HTTP, one sentence in each, batched; all behind the same FastAPI app.",
    "startup": "From process start to the end of the first training step, and the compiled programs.",
    "pipeline": "Reading, tokenizing and batching alone, against the rate of the training step.",
    "memory": "Peak memory of a compiled training step: parameters, optimizer state, batch and intermediates.",
    "roofline": "Matrix products of a training step, against the fastest product on this machine.",
    "scaling": "Exponents fitted to the cost of a step: 1 is linear, 2 quadratic. The fitted points follow.",
}
"""Benchmarks, in the order of the page."""

PEERS = {
    "torch": "PyTorch",
    "torch_compile": "PyTorch, compiled",
    "transformers": "transformers",
    "ctranslate2": "CTranslate2",
    "ctranslate2_int8": "CTranslate2, int8",
    "uncached": "no cache, one at a time",
    "one_at_a_time": "one request at a time",
}


def write(path: Path, records: Sequence[Record], command: str, earlier: Sequence[Record] = ()) -> None:
    """Write the page. The latest of repeated figures counts, but a full run takes precedence over a quick one.

    Args:
        path: of the page.
        records: of this run.
        command: of this run.
        earlier: records of earlier runs.
    """
    figures: dict[tuple[str | None, ...], Record] = {}
    for record in (*earlier, *records):
        key = (record.device, record.bench, record.subject, record.peer, record.unit)
        if not record.quick or figures.get(key, record).quick:
            figures[key] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = _page(list(figures.values()), command, with_earlier=bool(earlier))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _page(records: Sequence[Record], command: str, *, with_earlier: bool) -> Iterator[str]:
    yield from (
        "# Benchmarks",
        "",
        f"Written on {datetime.date.today().isoformat()} by",
        "",
        f"    {command}",
        "",
        f"{'and earlier runs with the same records. ' if with_earlier else ''}Do not edit by hand.",
        "",
        "Ours and its peers ran on the same machine, each in its own process, with the same number of threads and,",
        "except for int8, the same precision. Measurements alternate after a warm-up, with two exceptions: `quality`",
        "trains one after the other, and the search without a cache follows the rest of `decode`. With repetitions,",
        "the figure is the median. A ratio above 1 means that ours is ahead of the peer. Targets apply to the ratio",
        "or, without a peer, to the figure.",
    )
    for device in sorted({record.device for record in records}, key=is_accelerator):
        yield from _device(device, [record for record in records if record.device == device])
    if not any(is_accelerator(record.device) for record in records):
        yield from (
            "",
            "## GPU",
            "",
            "Not measured yet: `bash benchmarks/gpu.sh` measures in bfloat16 at the paper's base and big size and adds",
            "its figures to this page. Targets: 45 % of the chip's matrix-product speed at base size and 55 %",
            "at big, 1.2 times compiled PyTorch, decoding 3 times transformers.",
        )


def _device(device: str, records: Sequence[Record]) -> Iterator[str]:
    yield from ("", f"## {device}", "")
    versions: dict[str, set[str]] = {}
    for record in records:
        for name, version in record.versions.items():
            versions.setdefault(name, set()).add(version)
    yield ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in versions.items()) + "."
    for bench, about in ABOUT.items():
        of_bench = [record for record in records if record.bench == bench]
        if of_bench:
            yield from ("", f"### {bench} on {device}", "", about, "")
            yield from _table(of_bench)


def _table(records: Sequence[Record]) -> Iterator[str]:
    works = list(dict.fromkeys(record.work for record in records))
    yield "| | | figure | ratio | target | reached | work |"
    yield "| --- | --- | ---: | ---: | ---: | :---: | :---: |"
    for record in records:
        target = target_of(record)
        yield _row(
            record.subject,
            "ours" if record.peer is None else PEERS[record.peer],
            _figure(record.value, record.unit),
            "" if record.ratio is None else f"{record.ratio:.2f}",
            "" if target is None else str(target),
            "" if target is None else ("yes" if target.meets(record) else "no"),
            str(works.index(record.work) + 1),
        )
    yield ""
    yield from (f"{number}. {work}." for number, work in enumerate(works, start=1))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _figure(value: float, unit: str) -> str:
    if unit == "share":
        return f"{100 * value:.1f} %"
    number = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return number if unit == "exponent" else f"{number} {unit}"
