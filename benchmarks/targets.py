"""Targets of the figures, on 2 cores in float32 unless a device is named."""

import re
from dataclasses import dataclass

from benchmarks.results import Record

ACCELERATOR = r"NVIDIA|Tesla|TPU"


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of a peer's record, or on the value of ours."""

    bench: str
    subject: str
    """Regular expression searched in the subject."""
    peer: str | None
    unit: str
    """Of the records."""
    bound: float
    at_most: bool = False
    accelerator: bool = False
    """For GPUs and TPUs, not for CPUs."""

    def meets(self, record: Record) -> bool:
        """Whether the record reaches it."""
        figure = record.value if record.peer is None else record.ratio
        return figure is not None and (figure <= self.bound if self.at_most else figure >= self.bound)

    def __str__(self) -> str:
        """Such as "≥ 2" or "≤ 8 %"."""
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:.0%}".replace("%", " %") if self.unit == "share" else f"{sign} {self.bound:.3g}"


TARGETS = (
    Target("train", "^translation, random", "torch", "tokens/s", 3),
    Target("train", "^translation, our batches$", "torch", "tokens/s", 2),
    Target("train", "", "transformers", "tokens/s", 2),
    Target("roofline", "", "torch_compile", "tokens/s", 1.2, accelerator=True),
    Target("quality", "", "torch", "minutes", 20 / 6),
    Target("decode", "sentences, greedy|sentences, beam", "ctranslate2", "s", 1),
    Target("decode", "one alone", "ctranslate2", "ms", 1),
    Target("decode", "", "transformers", "s", 2),
    Target("decode", "", "transformers", "s", 3, accelerator=True),
    Target("decode", "", "uncached", "s", 20),
    Target("startup", "cold", None, "s", 12, at_most=True),
    Target("startup", "warm", None, "s", 5, at_most=True),
    Target("startup", "in an epoch", None, "programs", 6, at_most=True),
    Target("startup", "48 layers", None, "times", 1.5, at_most=True),
    Target("roofline", "base", None, "share", 0.5),
    Target("roofline", "base", None, "share", 0.45, accelerator=True),
    Target("roofline", "big", None, "share", 0.55, accelerator=True),
    Target("pipeline", "epoch", None, "times", 20),
    Target("pipeline", "padding", None, "share", 0.08, at_most=True),
    Target("scaling", "time by length|memory by length", None, "exponent", 2, at_most=True),
    Target("scaling", "fused attention: memory by length", None, "exponent", 1.05, at_most=True, accelerator=True),
    Target("scaling", "by vocabulary|by depth", None, "exponent", 1.05, at_most=True),
)


def target_of(record: Record) -> Target | None:
    """The target of a record, if it has one."""
    accelerator = is_accelerator(record.device)
    figure = record.value if record.peer is None else record.ratio
    if figure is None:
        return None
    for target in TARGETS:
        alike = (target.bench, target.peer, target.unit) == (record.bench, record.peer, record.unit)
        if alike and target.accelerator == accelerator and re.search(target.subject, record.subject):
            return target
    return None


def is_accelerator(device: str) -> bool:
    """Whether the name is that of a GPU or a TPU."""
    return re.match(ACCELERATOR, device) is not None
