"""Results of benchmarks, as one JSON object per line."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "ours"
"""Our name among the measured systems; all others are peers."""
PEERS = ("torch", "torch_compile", "transformers", "ctranslate2", "ctranslate2_int8", "uncached", "one_at_a_time")
QUICK = "quick: "
"""Prefix of `work` in quick runs."""
PACKAGES = ("transformer-jax", "jax", "jaxlib", "libtpu", "flax", "numpy", "torch", "transformers", "ctranslate2")


@dataclass(frozen=True)
class Record:
    """One figure: ours if `peer` is None, otherwise the peer's, with our ratio to it."""

    bench: str
    """Name of the benchmark on the command line."""
    subject: str
    """Measured part, such as "Multi30k, random padded batches"."""
    peer: str | None
    """One of `PEERS`, or None for ours."""
    unit: str
    value: float
    """In `unit`: the median, if `work` mentions repetitions."""
    ratio: float | None
    """Above 1 if ours is ahead; None for ours."""
    work: str
    """What is needed to repeat it: shapes, data, amounts, repetitions."""
    device: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if self.peer is not None and self.peer not in PEERS:
            raise ValueError(f"{self.peer!r} is not a peer; known: {', '.join(PEERS)}.")

    @property
    def quick(self) -> bool:
        """Whether it comes from a quick run."""
        return self.work.startswith(QUICK)

    def line(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)


def is_peer(name: str) -> bool:
    """Whether the name is that of a peer, such as "torch" or "torch, our batches"."""
    return name.partition(",")[0] in PEERS


def emit(record: Record, out: Path | None = None) -> None:
    """Print a record, and append it to the file `out`."""
    print(record.line(), flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as stream:
            stream.write(record.line() + "\n")


def read(path: Path) -> list[Record]:
    """Records of a file written by `emit`."""
    return [Record(**json.loads(line)) for line in path.read_text("utf-8").splitlines() if line.strip()]


def compare(
    bench: str,
    subject: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    *,
    work: str,
    device: str,
    more_is_better: bool,
) -> Iterator[Record]:
    """A record for each system: its median, and our ratio to each peer.

    Args:
        bench: see `Record`, like the next two.
        subject: of all values.
        unit: of all values.
        values: repetitions by name: those of `OURS` (without them there are no ratios) and of peers.
        work: see `Record`; the number of repetitions is added.
        device: see `Record`.
        more_is_better: True for rates, False for times.
    """
    ours = statistics.median(values[OURS]) if OURS in values else None
    for name, repetitions in values.items():
        value = statistics.median(repetitions)
        ratio = None
        if name != OURS and ours is not None:
            ratio = ours / value if more_is_better else value / ours
        yield Record(
            bench=bench,
            subject=subject,
            peer=None if name == OURS else name,
            unit=unit,
            value=value,
            ratio=ratio,
            work=f"{work}; median of {len(repetitions)}",
            device=device,
            versions=installed_versions(),
        )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the relevant packages that are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cpu_name(threads: int) -> str:
    """Such as "2 threads of AMD EPYC"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{threads} threads of {names[0] if names else platform.processor() or platform.machine()}"


def device_name(threads: int) -> str:
    """The GPU, if there is one, otherwise the CPU with its number of threads."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip():
            return found.stdout.strip().splitlines()[0]
    return cpu_name(threads)
