"""`tpu_compile`: memory, sharding and lower time bounds of training and search on TPUs, without a TPU.

libtpu's compiler makes the real programs on any machine; nothing is run. Times are lower bounds by the chips' published
figures, for the network with all links busy.
"""

import importlib.util
from collections import Counter
from collections.abc import Iterator

from benchmarks.results import Record, installed_versions
from benchmarks.settings import Settings, Unavailable
from benchmarks.tpu_chips import NOT_THERE, TOPOLOGIES, Chip, chip_of
from benchmarks.tpu_programs import DECODER, ENCODER, STEP, Compiled, Program, build, described, step_size
from benchmarks.workers import Worker
from transformer_jax.sharding import MeshConfig
from transformer_jax.training.usage import chip_flops

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
    # Keep libtpu from looking for TPUs, locking them, and logging what is missing.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Environment of the compiling process."""

DATA = MeshConfig()
FSDP = MeshConfig(data=1, fsdp=-1)
TENSOR = MeshConfig(data=1, fsdp=-1, tensor=4)
BOTH = MeshConfig(data=-1, fsdp=8)
"""For a pod, where `fsdp` alone would leave each chip only a few rows of each matrix."""
MESHES = {"base": (DATA, FSDP), "big": (DATA, FSDP), "1b": (FSDP, TENSOR)}
"""Meshes of training. The search shards sentences over devices and replicates parameters."""


def programs(topology: str, *, quick: bool) -> list[Program]:
    """Programs to compile for a topology."""
    alone, pod = topology == "v5e:1x1", topology == "v5e:16x16"
    if quick:
        return [Program("base", STEP, mesh) for mesh in ((DATA,) if alone else (DATA, FSDP))]
    found = []
    for shape, meshes in MESHES.items():
        of_shape = (DATA,) if alone else (*meshes, BOTH) if pod else meshes
        found += [Program(shape, STEP, mesh) for mesh in of_shape]
        found += [Program(shape, kind, DATA) for kind in (ENCODER, DECODER)]
    return [*found, Program("base without remat", STEP, DATA)] if alone else found


def run(settings: Settings) -> Iterator[Record]:
    """The figures of each program.

    Raises:
        Unavailable: without libtpu.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise Unavailable('package libtpu is not installed; pip install -e ".[tpu]"')
    for topology in settings.topologies or (["v5e:2x4"] if settings.quick else TOPOLOGIES):
        asked = programs(topology, quick=settings.quick)
        unit, threads = chip_of(topology).unit, settings.threads
        task = build, topology, asked, unit, TOPOLOGIES[topology]
        with Worker(*task, threads=threads, environment=ENVIRONMENT) as worker:
            for program in asked:
                yield from _records(program, topology, worker.measure())


def least_seconds(found: Compiled, chip: Chip) -> dict[str, float]:
    """Lower bounds of a program's time by arithmetic, main memory and network."""
    assert found.cost is not None
    peak = chip_flops(chip.kind)
    assert peak is not None
    return {
        "arithmetic": found.cost.flops / peak,
        "memory": found.cost.moved / chip.moves,
        "network": sum(each.times * each.sent for each in found.collectives) / chip.sends,
    }


def _records(program: Program, topology: str, found: Compiled) -> Iterator[Record]:
    chip = chip_of(topology)
    figures = [("needs", "GB", found.memory / 1e9), ("has", "GB", chip.memory / 1e9), ("compiles", "s", found.seconds)]
    if found.cost is not None:
        figures += [("computes", "GFLOP", found.cost.flops / 1e9), ("fills its units", "share", found.cost.filled)]
        if program.kind == STEP:
            formula = step_size(program.shape, found.devices).flops / found.devices
            figures.append(("computes", "times the formula", found.cost.flops / formula))
        figures.append(("moves", "GB", found.cost.moved / 1e9))
        sent: Counter[str] = Counter()
        for each in found.collectives:
            sent[each.kind] += each.times * each.sent
        figures += [(f"sends by {kind}", "MB", size / 1e6) for kind, size in sorted(sent.items())]
        figures += [(f"bound by {what}", "ms", 1e3 * least) for what, least in least_seconds(found, chip).items()]
    work = f"{described(program, found.devices)}; compiled by libtpu, not run; figures of one chip"
    for figure, unit, value in figures:
        subject, device = f"{program}: {figure}", f"{NOT_THERE}{topology}"
        yield Record("tpu_compile", subject, None, unit, value, None, work, device, installed_versions())
