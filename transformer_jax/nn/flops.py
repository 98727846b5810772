"""FLOPs of the matrix products of a model, by formula.

Per row of S source and T target tokens, with width D, feed-forward width F and vocabulary V, counting a multiplication
and an addition as two operations:

    encoder layer   2 S (4 D² + 2 D F) + 4 S² D
    decoder layer   2 T (6 D² + 2 D F) + 2 S (2 D²) + 4 T² D + 4 T S D
    output layer    2 T D V

A classifier has encoder layers only. A training step costs three times the forward pass, since each product needs two
more in the backward pass. Attention counts all pairs of a row, masked ones included. Softmax, dropout, the optimiser
and recomputation by rematerialisation are not counted.
"""

from transformer_jax.nn.model_config import ModelConfig


def forward_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of one forward pass over `rows` rows."""
    s, t, d, f = source_length, target_length, config.d_model, config.d_ff
    encoder = 2 * s * (4 * d**2 + 2 * d * f) + 4 * s**2 * d
    decoder = 2 * t * (6 * d**2 + 2 * d * f) + 2 * s * 2 * d**2 + 4 * t**2 * d + 4 * t * s * d
    output = 2 * t * d * config.target_vocab_size
    decoder_layers = 0 if config.num_classes else config.num_decoder_layers
    return float(rows * (config.num_encoder_layers * encoder + decoder_layers * decoder + output))


def training_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of one training step on `rows` rows."""
    return 3 * forward_flops(config, rows, source_length, target_length)
