"""Programs of `tpu_compile`: a training step, the encoder and a decode step, for devices that need not exist."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import Collective, collectives
from benchmarks.hlo_cost import Cost, cost
from benchmarks.synthetic import StepSize, SyntheticStep
from transformer_jax.data import PAD, SPECIAL_TOKENS
from transformer_jax.decoding import forbid_sequences
from transformer_jax.decoding.generator import BAD_WORDS
from transformer_jax.decoding.scheduler import advance_batch, start
from transformer_jax.decoding.search import Search
from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params, split
from transformer_jax.sharding import ROWS, MeshConfig, make_mesh
from transformer_jax.training.usage import program_memory

STEP, ENCODER, DECODER = ("training step", "encoder", "decode step")
LENGTH, SENTENCE = 256, 32
"""Tokens of a packed row and of each of its sentences, per side."""
SEARCHED, SOURCE, BEAM = 64, 64, 4
"""Per device: sentences searched at a time; per sentence: tokens and hypotheses."""

_PAPER = ModelConfig(
    d_model=512,
    num_heads=8,
    d_ff=2048,
    num_encoder_layers=6,
    num_decoder_layers=6,
    source_vocab_size=37_000,
    target_vocab_size=37_000,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
)
SHAPES = {
    "base": (_PAPER, 32),
    "base without remat": (replace(_PAPER, remat="none"), 32),
    "big": (replace(_PAPER, d_model=1024, num_heads=16, d_ff=4096, dropout_rate=0.3), 16),
    "1b": (
        replace(
            _PAPER,
            d_model=2048,
            d_ff=8192,
            num_heads=16,
            num_encoder_layers=8,
            num_decoder_layers=8,
            source_vocab_size=32_768,
            target_vocab_size=32_768,
            norm_first=True,
        ),
        16,
    ),
}
"""The paper's two models (table 3, section 5.1) and one of a billion parameters; rows per device of a training step.

Layers are scanned, for a compile time independent of their number, and rematerialized, which moves less memory than
storing their activations."""


@dataclass(frozen=True)
class Program:
    """A training step, an encoder or a decode step of one of `SHAPES`, on a mesh."""

    shape: str
    kind: str
    mesh: MeshConfig

    def __str__(self) -> str:
        """Such as "1b, training step, fsdp tensor=4"; an axis without a size takes the remaining devices."""
        sizes = {axis: getattr(self.mesh, axis) for axis in ("data", "fsdp", "tensor")}
        split_over = " ".join(axis if size == -1 else f"{axis}={size}" for axis, size in sizes.items() if size != 1)
        return f"{self.shape}, {self.kind}, {split_over}"


@dataclass(frozen=True)
class Compiled:
    """Figures of a compiled program, per device."""

    devices: int
    seconds: float
    """Compile time."""
    memory: float
    """Peak bytes; for a program that does not fit, a lower bound."""
    cost: Cost | None
    """None for a program that does not fit."""
    collectives: tuple[Collective, ...]


def build(topology: str, programs: Sequence[Program], unit: int, options: dict[str, Any]) -> Callable[[], Compiled]:
    """Compiles the next program on each call.

    Args:
        topology: name in libtpu, such as "v5e:2x4".
        programs: to compile.
        unit: rows and columns of a chip's matrix units.
        options: of the topology.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    remaining = iter(programs)
    return lambda: compile_program(next(remaining), devices, unit)


def compile_program(program: Program, devices: Sequence[jax.Device], unit: int) -> Compiled:
    """Compile for devices that need not exist."""
    mesh = make_mesh(program.mesh, devices)
    lower = {STEP: _training_step, ENCODER: _encoder, DECODER: _decode_step}[program.kind]
    lowered = lower(program.shape, mesh)
    started = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "exceed" not in str(error).lower():
            raise
        sizes = re.findall(r"([\d.]+)([MGT])\b", str(error))
        need = max(float(size) * 2 ** {"M": 20, "G": 30, "T": 40}[letter] for size, letter in sizes)
        return Compiled(len(devices), time.perf_counter() - started, need, None, ())
    seconds = time.perf_counter() - started
    text, need = compiled.as_text(), program_memory(compiled)
    return Compiled(len(devices), seconds, need.total if need else 0.0, cost(text, unit), tuple(collectives(text)))


def step_size(shape: str, devices: int) -> StepSize:
    """Size of a training step on a number of devices."""
    model, rows = SHAPES[shape]
    return StepSize(model, rows=rows * devices, length=LENGTH, sentence_length=SENTENCE)


def described(program: Program, devices: int) -> str:
    """Description of a program's work."""
    size = step_size(program.shape, devices)
    if program.kind == STEP:
        return str(size)
    model = str(replace(size, model=_searched(program.shape))).partition("), ")[2].partition(";")[0]
    beam = f" with a beam of {BEAM}" if program.kind == DECODER else ""
    return f"one {program.kind}, {model}; {SEARCHED * devices:,} sentences of {SOURCE} tokens{beam}"


def _searched(shape: str) -> ModelConfig:
    """The model as `Generator` uses it."""
    return replace(SHAPES[shape][0], scan_layers=False, remat="none")


def _training_step(shape: str, mesh: Mesh) -> jax.stages.Lowered:
    return SyntheticStep(step_size(shape, mesh.size), mesh).lowered


def _encoder(shape: str, mesh: Mesh) -> jax.stages.Lowered:
    graphdef, params, (source, *_) = _search(shape, mesh)
    return jax.jit(lambda params, source: nnx.merge(graphdef, params).remember(source)).lower(params, source)


def _decode_step(shape: str, mesh: Mesh) -> jax.stages.Lowered:
    """The loop of the search; one iteration counts, as the number of iterations is unknown."""
    graphdef, params, inputs = _search(shape, mesh)
    search = Search(
        max_length=SOURCE + 50,
        num_hypotheses=BEAM,
        n_best=1,
        bos_id=SPECIAL_TOKENS.bos,
        eos_id=SPECIAL_TOKENS.eos,
        pad_id=PAD,
        processors=(forbid_sequences(BAD_WORDS),),
        alpha=0.6,
    )
    memory, state, cache = _on_mesh(jax.eval_shape(partial(start, graphdef, search), params, *inputs, None), mesh)
    until = jax.ShapeDtypeStruct((), jnp.int32)
    return advance_batch.lower(graphdef, search, None, params, None, memory, None, state, cache, until)


def _search(shape: str, mesh: Mesh) -> tuple[nnx.GraphDef, Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """A model with replicated parameters, and sources, prefixes and limits sharded over all devices."""
    model = _searched(shape)
    graphdef, _ = abstract_params(Seq2Seq, model)
    params = jax.eval_shape(lambda: split(Seq2Seq(model, rngs=nnx.Rngs(0)))[1])
    whole = NamedSharding(mesh, P())
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), params)
    rows = SEARCHED * mesh.size
    tokens = jax.ShapeDtypeStruct((rows, SOURCE), jnp.int32)
    limits = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return graphdef, params, _on_mesh((tokens, tokens, limits, limits), mesh)


def _on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Rows sharded over all devices, scalars replicated."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, ROWS if leaf.ndim else P()))

    return jax.tree.map(place, tree)
