"""Matrix products of a step of training, counted by formula, and what chips promise.

Per row of S source and T target tokens, with width D, feed-forward width F and vocabulary V, one multiplication and one
addition counted as two:

    encoder layer   2 S (4 D² + 2 D F) + 4 S² D
    decoder layer   2 T (6 D² + 2 D F) + 2 S (2 D²) + 4 T² D + 4 T S D
    output layer    2 T D V

A classifier has the encoder's layers only. A step of training takes three times that: one pass forward, and two
products for each on the way back. Attention is counted over all of a row, also where a mask hides it. Nothing else is
counted: no softmax, dropout, optimiser, nor what rematerialisation computes again.
"""

from typing import Any

from transformer_jax.data.collate import Seq2SeqBatch, TextBatch
from transformer_jax.nn import ModelConfig

BACKWARD_AND_FORWARD = 3

CHIP_FLOPS = {
    "NVIDIA GB200": 2500e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10": 125e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
}
"""Matrix products per second in 16 bits, without sparsity, as makers publish them, by how `device_kind` begins.

TPU v3: a core, half a chip, as JAX shows each as a device."""


def forward_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """Floating-point operations of the matrix products of one pass forward over `rows` rows."""
    s, t, d, f = source_length, target_length, config.d_model, config.d_ff
    encoder = 2 * s * (4 * d**2 + 2 * d * f) + 4 * s**2 * d
    decoder = 2 * t * (6 * d**2 + 2 * d * f) + 2 * s * 2 * d**2 + 4 * t**2 * d + 4 * t * s * d
    output = 2 * t * d * config.target_vocab_size
    decoder_layers = 0 if config.num_classes else config.num_decoder_layers
    return float(rows * (config.num_encoder_layers * encoder + decoder_layers * decoder + output))


def training_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """The same of one step of training."""
    return BACKWARD_AND_FORWARD * forward_flops(config, rows, source_length, target_length)


def step_flops(config: ModelConfig, batch: Any) -> float | None:
    """The same of a step on this batch; None for batches of a task that is none of this package's."""
    if isinstance(batch, Seq2SeqBatch):
        rows, source_length = batch.source.shape
        return training_flops(config, rows, source_length, batch.target.shape[1])
    if isinstance(batch, TextBatch):
        rows, length = batch.tokens.shape
        return training_flops(config, rows, length, 0)
    return None


def chip_flops(device_kind: str) -> float | None:
    """What its maker says that a device does per second; None: not in the table."""
    return next((flops for name, flops in CHIP_FLOPS.items() if device_kind.startswith(name)), None)
