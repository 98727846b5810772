"""Collectives of a compiled program, read from its HLO text."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "all-to-all",
    "ragged-all-to-all",
)
"""Of collectives, as XLA names them."""


class Collective(NamedTuple):
    """An instruction by which devices exchange data."""

    kind: str
    """One of `KINDS`."""
    size: int
    """Bytes of what is summed, gathered, scattered or moved: whole, as one device has it before or after."""
    devices: int
    """Among how many it happens."""
    times: int
    """It runs so often each time the program runs."""

    @property
    def sent(self) -> float:
        """Bytes that each device sends each time, in a ring."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.size)
        passes = 2 if self.kind == "all-reduce" else 1
        return passes * self.size * (self.devices - 1) / self.devices


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program.

    A loop counts as often as it runs if the program states its trip count, else once. A collective that one instruction
    starts and another ends counts once. An all-reduce on a TPU of which each device keeps a part is a reduce-scatter.

    Args:
        text: `compiled.as_text()`.
    """
    parts, entry = computations(text)
    found = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
    return list(_within(entry, 1, parts, math.prod(map(int, found))))


def totals(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """By kind, how many collectives run each time the program runs, and the sum of their bytes."""
    sums: dict[str, tuple[int, int]] = {}
    for each in found:
        count, size = sums.get(each.kind, (0, 0))
        sums[each.kind] = count + each.times, size + each.times * each.size
    return sums


_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[^\s=]+ = (.*?)\s([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|to_apply|branch_computations|true_computation|false_computation)=(?:\{([^}]*)\}|%?([^\s,}]+))"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,<=]*)\]")


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation of a module, and the name of the one that is run."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            name = header[2]
            found[name] = []
            entry = name if header[1] else entry
        elif name and line.startswith(" "):
            found[name].append(line)
    return found, entry


def _within(name: str, times: int, computations: Mapping[str, list[str]], everyone: int) -> Iterator[Collective]:
    """Those of a computation that runs so often, and of those that it calls."""
    lines = computations.get(name, [])
    # On TPUs one collective may span several fusions; one of them starts it.
    goes_on = not any('"AsyncCollectiveStart"' in line for line in lines)
    for line in lines:
        instruction = _INSTRUCTION.match(line)
        if instruction is None:
            continue
        result, operation = instruction.groups()
        kind = operation.removesuffix("-start")
        if kind in KINDS and not ("async_collective_fusion_config" in line and goes_on):
            devices = _group_size(line, everyone)
            size = _size(operation, result, devices)
            scatters = kind == "all-reduce" and name.startswith("all-reduce-scatter")
            yield Collective("reduce-scatter" if scatters else kind, size, devices, times)
        elif operation not in ("async-update", "async-done"):
            inner = times * trip_count(line, computations) if operation == "while" else times
            for several, one in _CALLED.findall(line):
                for called in re.split(r",\s*", several) if several else [one]:
                    yield from _within(called.lstrip("%"), inner, computations, everyone)


def trip_count(line: str, computations: Mapping[str, list[str]]) -> int:
    """Of a `while`: what the compiler noted, else the bound of a counter that starts at 0; else 1."""
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if noted:
        return int(noted[1])
    named = re.search(r"condition=%?([^\s,]+)", line)
    condition = "\n".join(computations.get(named[1], []) if named else [])
    bounds = re.findall(r" s32\[\]\S* constant\((\d+)\)", condition)
    compares = re.search(r"ROOT [^\n]* compare\([^\n]*direction=LT", condition)
    return int(bounds[0]) if compares and len(bounds) == 1 else 1


def _group_size(line: str, everyone: int) -> int:
    """How many devices take part, from any of the three ways in which XLA writes groups of them."""
    groups = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if groups:
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", groups[1])}
        # An axis may be split further: 'axis':(1)2 is 2 of its devices.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", groups[2])
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    groups = re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line)
    if groups:
        return int(groups[1])
    groups = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(groups[1].split(",")) if groups else everyone


def _size(operation: str, result: str, devices: int) -> int:
    """Bytes of what a collective works on, from the type of its result."""
    is_start = operation.endswith("-start") and operation != "all-reduce-start"
    # What starts one gives a state as well: scalars of type u32.
    total = sum(_bytes(array) for array in _ARRAY.finditer(result) if not (is_start and array[0] == "u32[]"))
    if operation == "reduce-scatter":
        return total * devices
    if operation in ("all-gather-start", "reduce-scatter-start"):  # the part of one device, and the whole
        return total * devices // (devices + 1)
    return total // 2 if is_start else total  # what goes, and what comes


def _bytes(array: re.Match[str]) -> int:
    kind, bits, shape = array.groups()
    elements = math.prod(int(size.lstrip("<=")) for size in shape.split(",") if size)
    return elements if kind == "pred" else math.ceil(elements * int(bits) / 8)
