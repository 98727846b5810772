"""FLOPs and memory traffic of a program compiled for TPUs, with loops multiplied by their trip counts.

`cost_analysis()` counts the body of a loop once, and on-chip memory as main memory.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from benchmarks.collectives import computations, trip_count


class Cost(NamedTuple):
    """Cost of one run of a program, per device."""

    flops: float
    """FLOPs of the matrix products; a multiply-add counts as two."""
    padded: float
    """FLOPs with widths rounded up to whole matrix units."""
    moved: float
    """Bytes read from and written to the device's main memory (HBM)."""

    @property
    def filled(self) -> float:
        """Utilization of the matrix units: FLOPs over padded FLOPs."""
        return self.flops / self.padded if self.padded else 1.0


def cost(text: str, unit: int) -> Cost:
    """The cost of a program.

    Args:
        text: `compiled.as_text()` of a program compiled for TPUs.
        unit: rows and columns of a matrix unit.
    """
    lines, entry = computations(text)
    parsed = {name: Computation(body) for name, body in lines.items()}

    def run(name: str) -> Cost:
        flops = padded = moved = 0.0
        for each in parsed[name].instructions:
            times = trip_count(each.line, lines) if each.operation == "while" else 1
            for called in each.runs:
                inner = run(called)
                flops += times * inner.flops
                padded += times * inner.padded
                # Intermediates of a fusion stay on the chip.
                moved += times * inner.moved * (each.operation != "fusion")
            flops += _flops(each, parsed[name], 1)
            padded += _flops(each, parsed[name], unit)
            moved += _moved(each, parsed[name], parsed)
        return Cost(flops, padded, moved)

    return run(entry)


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    result: str
    """Type of the result."""
    operation: str
    operands: tuple[str, ...]
    line: str

    def attribute(self, name: str) -> str:
        """Value of an attribute, such as the called computation; empty if missing."""
        found = re.search(rf", {name}=\{{?%?([^\s,}}]+)", self.line)
        return found[1] if found else ""

    @property
    def runs(self) -> list[str]:
        """Called computations, except for scalar ones."""
        name = {"while": "body", "call": "to_apply", "fusion": "calls", "async-start": "calls"}.get(self.operation)
        called = self.attribute(name) if name else ""
        return [called] if called else []


class Computation:
    """Instructions in order."""

    def __init__(self, lines: list[str]) -> None:
        """Parse lines of a program's text."""
        matches = [match for line in lines if (match := _LINE.match(line))]
        self.instructions = [
            Instruction(match[2], match[3], match[4], tuple(re.findall(r"%([^\s,]+)", match[5])), match[0])
            for match in matches
        ]
        self.by_name = {each.name: each for each in self.instructions}
        self.root = next((self.by_name[match[2]] for match in matches if match[1]), None)

    @cached_property
    def parameters(self) -> list[str]:
        """Names of the parameters, in order."""
        found = [each for each in self.instructions if each.operation == "parameter"]
        return [each.name for each in sorted(found, key=lambda each: int(each.line.rpartition("(")[2].rstrip(")")))]


_LINE = re.compile(r"\s+(ROOT )?%?([^\s=]+) = (.*?)\s([a-z][a-z0-9-]*)\(([^)]*)\).*")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_SLICES = ("dynamic-slice", "slice", "gather")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "async-done")
"""Operations that move no data."""


def _flops(each: Instruction, within: Computation, unit: int) -> float:
    """Matrix products are `convolution`s on TPUs; a unit holds `unit` inputs by `unit` outputs of the kernel."""
    if each.operation != "convolution":
        return 0.0
    lhs, rhs, out = re.split("_|->", each.attribute("dim_labels"))
    left, right = (within.by_name[name].result for name in each.operands)
    inputs, kernel, outputs = (
        dict(zip(labels, _shape(of), strict=True)) for labels, of in ((lhs, left), (rhs, right), (out, each.result))
    )
    window = dict(re.findall(r"(\w+)=(\S+)", (re.findall(r"window=\{([^}]*)\}", each.line) or [""])[0]))
    flops = 2.0 * outputs["b"] * math.ceil(outputs["f"] / unit) * unit * math.ceil(kernel["i"] / unit) * unit
    for axis, taps in enumerate(window["size"].split("x") if window else []):
        pad, stride, gaps, spread = (
            int(window[name].split("x")[axis].split("_")[0]) if name in window else default
            for name, default in (("pad", 0), ("stride", 1), ("lhs_dilate", 1), ("rhs_dilate", 1))
        )
        last = (inputs[str(axis)] - 1) * gaps
        places = (at * stride - pad + tap * spread for at in range(outputs[str(axis)]) for tap in range(int(taps)))
        # Count the pairs of kernel and input elements, without padding and gaps.
        flops *= sum(0 <= place <= last and place % gaps == 0 for place in places)
    return flops


def _moved(each: Instruction, within: Computation, parsed: dict[str, Computation]) -> float:
    if each.operation in _FREE or (each.runs and each.operation != "fusion") or "AllocateBuffer" in each.line:
        return 0.0
    # Asynchronous operations count where they end. A slice is read from main memory; copies go in either direction.
    if each.operation.endswith(("-start", "-update")):
        return 0.0
    if each.operation == "copy-done":
        return float(_bytes(within.by_name[each.operands[0]].result))
    if each.operation.endswith("-done"):
        return float(_bytes(each.result, anywhere=True))
    operands = [_bytes(within.by_name[name].result) for name in each.operands]
    if each.runs:
        called = parsed[each.runs[0]]
        pairs = zip(called.parameters, operands, strict=True)
        return float(sum(_read(called, name, whole, parsed) for name, whole in pairs) + _written(called, each))
    if each.operation in _SLICES:
        return float(2 * _bytes(each.result))
    if each.operation == "dynamic-update-slice":
        return float(2 * operands[1])
    return float(_bytes(each.result) + sum(operands))


def _read(fusion: Computation, parameter: str, whole: int, parsed: dict[str, Computation]) -> int:
    """Bytes that a fusion reads of a parameter of `whole` bytes: the slices, if it only slices it."""

    def used(name: str) -> Iterator[int]:
        for user in fusion.instructions:
            if name not in user.operands:
                continue
            if user.operation in _SLICES and user.operands[0] == name:
                yield _bytes(user.result, anywhere=True)
            elif user.operation in ("bitcast", "reshape"):
                yield from used(user.name)
            elif user.operation == "fusion":
                inner = parsed[user.runs[0]]
                yield _read(inner, inner.parameters[user.operands.index(name)], whole, parsed)
            elif user.operation not in ("dynamic-update-slice", "scatter") or user.operands[0] != name:
                yield whole  # the others are updated in place

    return min(whole, sum(used(parameter))) if whole else 0


def _written(fusion: Computation, caller: Instruction) -> int:
    """Bytes that a fusion writes: only the changed part of in-place updates."""
    whole = [_filled(array) if "S(" not in (array[4] or "") else 0 for array in _ARRAY.finditer(caller.result)]
    roots = [fusion.root] if fusion.root is not None else []
    if roots and roots[0].operation == "tuple":
        roots = [fusion.by_name[name] for name in roots[0].operands]
    if len(roots) != len(whole):
        return sum(whole)
    total = 0
    for root, size in zip(roots, whole, strict=True):
        while root.operation == "bitcast":
            root = fusion.by_name[root.operands[0]]
        changed = {"dynamic-update-slice": 1, "scatter": 2}.get(root.operation)
        if changed is not None:
            size = min(size, _bytes(fusion.by_name[root.operands[changed]].result, anywhere=True))
        total += size
    return total


def _shape(result: str) -> list[int]:
    array = _ARRAY.search(result)
    assert array is not None
    return [int(size) for size in array[3].split(",") if size]


def _bytes(result: str, *, anywhere: bool = False) -> int:
    """Bytes of a type in main memory, or in any memory, with padded tiles; `S(...)` marks other memories."""
    return sum(_filled(array) for array in _ARRAY.finditer(result) if anywhere or "S(" not in (array[4] or ""))


def _filled(array: re.Match[str]) -> int:
    """Bytes of an array with its last dimensions padded to whole tiles, such as T(8,128)."""
    kind, bits, shape, layout = array.groups()
    sizes = [int(size.lstrip("<=")) for size in shape.split(",") if size]
    order = re.match(r"[\d,]*", layout or "")
    minor_first = [sizes[int(axis)] for axis in order[0].split(",") if axis] if order else []
    tile = re.search(r"T\(([\d,]+)\)", layout or "")
    if minor_first and tile:
        for at, unit in enumerate(reversed(tile[1].split(","))):
            if at < len(minor_first):
                minor_first[at] = math.ceil(minor_first[at] / int(unit)) * int(unit)
        sizes = minor_first
    return math.ceil(math.prod(sizes) * (8 if kind == "pred" else int(bits)) / 8)
