"""A training step of any size on random tokens, for `roofline`, `memory` and `scaling`."""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Key

from transformer_jax.config import OptimConfig
from transformer_jax.data.packing import Seq2SeqBatch, collate_pairs
from transformer_jax.nn import ModelConfig, Seq2Seq, abstract_params, split
from transformer_jax.nn.losses import Params, Sums, chunked_cross_entropy
from transformer_jax.nn.model_config import training_flops
from transformer_jax.sharding import ROWS, on_mesh, state_shardings
from transformer_jax.training.step import TrainState, init_state, make_optimizer, make_schedule, train_step

UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
"""Environment of workers: cached programs need no compile time and may lack a memory analysis."""
FIRST_WORD = 4
"""Lower ids are special tokens."""


@dataclass(frozen=True)
class StepSize:
    """Size of a training step."""

    model: ModelConfig
    rows: int
    length: int
    """Tokens per row and side, none of them padding."""
    sentence_length: int = 0
    """Tokens per sentence; 0 for one sentence per row."""
    loss_chunk: int = 0
    """Tokens with logits in memory at a time; 0 for the default of training."""

    @property
    def tokens(self) -> int:
        """Tokens per batch and side."""
        return self.rows * self.length

    @property
    def flops(self) -> float:
        """Of the matrix products of the step, see `transformer_jax.nn.model_config`."""
        return training_flops(self.model, self.rows, self.length, self.length)

    def __str__(self) -> str:
        """The sizes, for `Record.work`."""
        m = self.model
        layers = f"{m.num_encoder_layers}+{m.num_decoder_layers} layers"
        layers += " scanned" if m.scan_layers else ""
        layers += "" if m.remat == "none" else f" with remat={m.remat}"
        sizes = f"d_model {m.d_model}, {m.num_heads} heads, d_ff {m.d_ff}, {layers}, vocabulary {m.target_vocab_size:,}"
        norm = "pre-norm" if m.norm_first else "post-norm"
        rows = f"{self.rows:,} row{'s' if self.rows > 1 else ''} of {self.length:,} tokens a side"
        chunk = f", loss in chunks of {self.loss_chunk:,}" if self.loss_chunk else ""
        return (
            f"one step of training (forward, backward, Adam), {sizes}, {norm}, dropout {m.dropout_rate}, {m.dtype}; "
            f"{rows}{chunk}"
        )


def batch_of(size: StepSize) -> Seq2SeqBatch:
    """Rows filled with sentences of random tokens."""
    draws = np.random.default_rng(0)
    longest = size.sentence_length or size.length
    lengths = [min(longest, size.length - start) for start in range(0, size.length, longest)]

    def tokens(length: int, vocab_size: int) -> np.ndarray:
        return draws.integers(FIRST_WORD, vocab_size, length, dtype=np.int32)

    sizes = size.model.source_vocab_size, size.model.target_vocab_size
    rows = [[tuple(tokens(length, vocab) for vocab in sizes) for length in lengths] for _ in range(size.rows)]
    return collate_pairs(rows, size.length, size.rows)


class SyntheticStep:
    """`transformer_jax.training.step.train_step`, jitted as in the training loop, with state and batch."""

    def __init__(self, size: StepSize, mesh: Mesh | None = None) -> None:
        """Prepare the step without compiling it.

        Args:
            size: of the step.
            mesh: devices that share the work, possibly only described, for compiling; default: one device.
        """
        self.size = size
        optim = OptimConfig()
        optimizer = make_optimizer(optim, make_schedule(optim, d_model=size.model.d_model, num_steps=100_000))
        graphdef, _ = abstract_params(Seq2Seq, size.model)

        def loss(params: Params, batch: Any, key: Key[Array, ""] | None) -> Sums:
            model: Seq2Seq = nnx.merge(graphdef, params)
            hidden = model.hidden(
                batch.source,
                batch.target,
                source_segments=batch.source_segments,
                target_segments=batch.target_segments,
                source_positions=batch.source_positions,
                target_positions=batch.target_positions,
                dropout_key=key,
            )
            weights = (batch.target_segments != 0).astype(jnp.float32)
            chunk = {"chunk": size.loss_chunk} if size.loss_chunk else {}
            total = chunked_cross_entropy(
                hidden, model.output_table, batch.labels, weights, optim.label_smoothing, **chunk
            )
            return {"loss": total, "weight": weights.sum()}

        def fresh() -> TrainState:
            return init_state(split(Seq2Seq(size.model, rngs=nnx.Rngs(0)))[1], optimizer, ema=False)

        self._fresh = fresh
        self._step = partial(train_step, loss_fn=loss, optimizer=optimizer, seed=0)
        self._mesh = mesh
        self._compiled: Any = None
        self._state: TrainState | None = None
        self._batch: Seq2SeqBatch | None = None

    def compile(self) -> float:
        """Trace and compile the step without running it; return seconds."""
        started = time.perf_counter()
        self._compiled = self.lowered.compile()
        return time.perf_counter() - started

    @property
    def lowered(self) -> jax.stages.Lowered:
        """The traced step, ready to compile."""
        state, row = jax.eval_shape(self._fresh), batch_of(replace(self.size, rows=1))
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((self.size.rows, *a.shape[1:]), a.dtype), row)
        if self._mesh is None:
            return jax.jit(self._step, donate_argnums=0).lower(state, batch)
        states, rows = state_shardings(state, self._mesh), NamedSharding(self._mesh, ROWS)
        placed = jax.tree.map(
            lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
            (state, batch),
            (states, jax.tree.map(lambda _: rows, batch)),
        )
        step = jax.jit(on_mesh(self._step, self._mesh), donate_argnums=0, out_shardings=(states, None))
        return step.lower(*placed)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the compiled step: parameters, optimizer state, batch and intermediates."""
        if self._compiled is None:
            self.compile()
        need = self._compiled.memory_analysis()
        kept = need.argument_size_in_bytes + need.output_size_in_bytes - need.alias_size_in_bytes
        return int(kept + need.temp_size_in_bytes)

    def __call__(self) -> float:
        """Run the step once; return seconds."""
        if self._compiled is None:
            self.compile()
        if self._state is None or self._batch is None:
            self._state, self._batch = jax.jit(self._fresh)(), jax.device_put(batch_of(self.size))
        started = time.perf_counter()
        self._state, sums = self._compiled(self._state, self._batch)
        float(sums["loss"])
        return time.perf_counter() - started
