"""Sizes and options of the models, and their checks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax

from transformer_jax.nn.layers import ACTIVATIONS
from transformer_jax.system import UserError

REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda run: run,
    "full": jax.checkpoint,
    "dots": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}
"""Checkpoint policies of a layer: none keeps all activations, full keeps none, dots keeps products with weights."""
TYINGS = ("all", "output", "inputs", "none")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Transformer; options default to the paper's.

    The default sizes suit a laptop; the paper's base model has `d_model=512, num_heads=8, d_ff=2048` and six layers per
    stack (table 3).
    """

    d_model: int = 256
    num_heads: int = 4
    d_ff: int = 1024
    num_encoder_layers: int = 3
    num_decoder_layers: int = 3
    dropout_rate: float = 0.1
    """Applied to embeddings and to each sub-layer's output (section 5.4)."""
    attention_dropout_rate: float = 0.0
    attention_implementation: str = "xla"
    """xla, or cudnn for the fused kernel on NVIDIA GPUs (bfloat16, without attention dropout)."""
    norm_first: bool = False
    """Use x + Sublayer(LayerNorm(x)) instead of section 3.1's LayerNorm(x + Sublayer(x))."""
    final_norm: bool = False
    """End post-norm stacks with a layer normalization, like PyTorch's nn.Transformer; pre-norm stacks always do."""
    activation: str = "relu"
    """One of relu, gelu, swish."""
    positions: str = "sinusoidal"
    """One of sinusoidal (section 3.5), learned (table 3, row E)."""
    max_positions: int = 1024
    """Rows of a learned position table; sinusoids are unbounded."""
    tie_embeddings: str = "all"
    """Embedding matrices that are one: all (source, target and output, section 3.4), output (target and output), inputs
    (source and target) or none. all and inputs need a joint vocabulary."""
    output_bias: bool = False
    """Add a bias to the logits."""
    scale_embeddings: bool = True
    """Multiply embeddings by sqrt(d_model) (section 3.4)."""
    dtype: str = "float32"
    """Dtype of the computation: float32 or bfloat16. Parameters and softmax are always float32."""
    scan_layers: bool = False
    """Run each stack as a loop over stacked parameters, so that compile time does not grow with depth."""
    remat: str = "none"
    """Activations that the backward pass recomputes to save memory: none, dots (all but products with weights), full
    (all)."""
    source_vocab_size: int = 0
    """0: taken from the tokenizer."""
    target_vocab_size: int = 0
    """0: taken from the tokenizer. Unused by classifiers."""
    num_classes: int = 0
    """Classes of a classifier; 0: taken from the data."""
    pooling: str = "mean"
    """A classifier's pooling of the encoder's output: mean (over tokens), first (first token)."""

    @property
    def one_vocabulary(self) -> bool:
        """Whether source and target share embeddings, which requires a joint vocabulary."""
        return self.tie_embeddings in ("all", "inputs")

    @property
    def position_limit(self) -> int | None:
        """Maximum tokens of a sentence; None if unbounded."""
        return self.max_positions if self.positions == "learned" else None


def check_seq2seq(config: ModelConfig) -> None:
    """Raise `UserError` if a field is invalid for a `Seq2Seq`, or contradicts another."""
    _check(config)
    _require(config, config.source_vocab_size > 0, "source_vocab_size", "the size of the vocabulary")
    _require(config, config.target_vocab_size > 0, "target_vocab_size", "the size of the vocabulary")
    _require(config, config.tie_embeddings in TYINGS, "tie_embeddings", f"one of {', '.join(TYINGS)}")
    _require(
        config,
        not config.one_vocabulary or config.source_vocab_size == config.target_vocab_size,
        "tie_embeddings",
        "output or none if the languages have separate vocabularies (tokenizer.joint=False)",
    )


def check_transformer(config: ModelConfig) -> None:
    """Raise `UserError` if a field is invalid for a `Transformer`, or contradicts another."""
    _check(config)


def check_classifier(config: ModelConfig) -> None:
    """Raise `UserError` if a field is invalid for a `Classifier`, or contradicts another."""
    _check(config)
    _require(config, config.source_vocab_size > 0, "source_vocab_size", "the size of the vocabulary")
    _require(config, config.num_classes > 1, "num_classes", "at least 2")
    _require(config, config.pooling in ("mean", "first"), "pooling", "mean or first")


def _require(config: ModelConfig, condition: bool, field: str, remedy: str) -> None:
    if not condition:
        raise UserError(f"config.model.{field} is {getattr(config, field)!r}, but must be {remedy}.")


def _check(config: ModelConfig) -> None:
    require = partial(_require, config)

    require(
        config.num_heads > 0 and config.d_model % config.num_heads == 0,
        "num_heads",
        f"a divisor of d_model={config.d_model}",
    )
    for rate in ("dropout_rate", "attention_dropout_rate"):
        require(0.0 <= getattr(config, rate) <= 0.99, rate, "between 0 and 0.99")
    require(config.attention_implementation in ("xla", "cudnn"), "attention_implementation", "xla or cudnn")
    if config.attention_implementation == "cudnn":
        require(config.dtype == "bfloat16", "dtype", "bfloat16 with attention_implementation=cudnn")
        require(config.attention_dropout_rate == 0.0, "attention_dropout_rate", "0 with attention_implementation=cudnn")
    for layers in ("num_encoder_layers", "num_decoder_layers"):
        require(getattr(config, layers) >= 0, layers, "at least 0")
    require(config.positions in ("sinusoidal", "learned"), "positions", "sinusoidal or learned")
    require(config.d_model % 2 == 0, "d_model", "even")
    require(config.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
    require(config.remat in REMATS, "remat", f"one of {', '.join(REMATS)}")
    require(config.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")


def forward_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of the matrix products of one forward pass over `rows` rows.

    Per row of S source and T target tokens, with width D, feed-forward width F and vocabulary V, a multiplication and
    an addition counting as two:

        encoder layer   2 S (4 D² + 2 D F) + 4 S² D
        decoder layer   2 T (6 D² + 2 D F) + 2 S (2 D²) + 4 T² D + 4 T S D
        output layer    2 T D V

    A classifier has the encoder's layers only. Attention counts over whole rows, masked or not. Nothing else counts:
    no softmax, dropout or optimizer, and nothing that rematerialization computes again.
    """
    s, t, d, f = source_length, target_length, config.d_model, config.d_ff
    encoder = 2 * s * (4 * d**2 + 2 * d * f) + 4 * s**2 * d
    decoder = 2 * t * (6 * d**2 + 2 * d * f) + 2 * s * 2 * d**2 + 4 * t**2 * d + 4 * t * s * d
    output = 2 * t * d * config.target_vocab_size
    decoder_layers = 0 if config.num_classes else config.num_decoder_layers
    return float(rows * (config.num_encoder_layers * encoder + decoder_layers * decoder + output))


def training_flops(config: ModelConfig, rows: int, source_length: int, target_length: int) -> float:
    """FLOPs of one training step on `rows` rows: one pass forward, and two products for each on the way back."""
    return 3 * forward_flops(config, rows, source_length, target_length)
