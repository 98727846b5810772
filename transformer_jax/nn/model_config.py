"""Sizes and options of the models, and their checks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax

from transformer_jax.nn.layers import ACTIVATIONS
from transformer_jax.system import (
    Choice,
    DropoutRate,
    FieldError,
    NotNegative,
    Positive,
    Range,
    check_fields,
)

REMATS: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda run: run,
    "full": jax.checkpoint,
    "dots": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}
"""Checkpoint policies of a layer: none keeps all activations, full keeps none, dots keeps products with weights."""

Layers = Annotated[int, Range(0, 1000)]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Transformer; options default to the paper's.

    The default sizes suit a laptop; the paper's base model has `d_model=512, num_heads=8, d_ff=2048` and six layers per
    stack (table 3).
    """

    d_model: Annotated[int, Range(2)] = 256
    num_heads: Positive = 4
    d_ff: Positive = 1024
    num_encoder_layers: Layers = 3
    num_decoder_layers: Layers = 3
    dropout_rate: DropoutRate = 0.1
    """Applied to embeddings and to each sub-layer's output (section 5.4)."""
    attention_dropout_rate: DropoutRate = 0.0
    attention_implementation: Annotated[str, Choice("xla", "cudnn")] = "xla"
    """xla, or cudnn for the fused kernel on NVIDIA GPUs (bfloat16, without attention dropout)."""
    norm_first: bool = False
    """Use x + Sublayer(LayerNorm(x)) instead of section 3.1's LayerNorm(x + Sublayer(x))."""
    final_norm: bool = False
    """End post-norm stacks with a layer normalization, like PyTorch's nn.Transformer; pre-norm stacks always do."""
    activation: Annotated[str, Choice(*ACTIVATIONS)] = "relu"
    """One of relu, gelu, swish."""
    positions: Annotated[str, Choice("sinusoidal", "learned")] = "sinusoidal"
    """One of sinusoidal (section 3.5), learned (table 3, row E)."""
    max_positions: Positive = 1024
    """Rows of a learned position table; sinusoids are unbounded."""
    tie_embeddings: Annotated[str, Choice("all", "output", "inputs", "none")] = "all"
    """Embedding matrices that are one: all (source, target and output, section 3.4), output (target and output), inputs
    (source and target) or none. all and inputs need a joint vocabulary."""
    output_bias: bool = False
    """Add a bias to the logits."""
    scale_embeddings: bool = True
    """Multiply embeddings by sqrt(d_model) (section 3.4)."""
    dtype: Annotated[str, Choice("float32", "bfloat16")] = "float32"
    """Dtype of the computation: float32 or bfloat16. Parameters and softmax are always float32."""
    scan_layers: bool = False
    """Run each stack as a loop over stacked parameters, so that compile time does not grow with depth."""
    remat: Annotated[str, Choice(*REMATS)] = "none"
    """Activations that the backward pass recomputes to save memory: none, dots (all but products with weights), full
    (all)."""
    source_vocab_size: NotNegative = 0
    """0: taken from the tokenizer."""
    target_vocab_size: NotNegative = 0
    """0: taken from the tokenizer. Unused by classifiers."""
    num_classes: NotNegative = 0
    """Classes of a classifier; 0: taken from the data."""
    pooling: Annotated[str, Choice("mean", "first")] = "mean"
    """A classifier's pooling of the encoder's output: mean (over tokens), first (first token)."""

    def __post_init__(self) -> None:
        check_fields(self, "config.model.{}".format)
        require = partial(_require, self)
        require(self.d_model % 2 == 0, "d_model", "even")
        require(self.d_model % self.num_heads == 0, "num_heads", f"a divisor of d_model={self.d_model}")
        if self.attention_implementation == "cudnn":
            require(self.dtype == "bfloat16", "dtype", "bfloat16 with attention_implementation=cudnn")
            require(self.attention_dropout_rate == 0, "attention_dropout_rate", "0 with attention_implementation=cudnn")

    @property
    def one_vocabulary(self) -> bool:
        """Whether source and target share embeddings, which requires a joint vocabulary."""
        return self.tie_embeddings in ("all", "inputs")

    @property
    def position_limit(self) -> int | None:
        """Maximum tokens of a sentence; None if unbounded."""
        return self.max_positions if self.positions == "learned" else None


def check_seq2seq(config: ModelConfig) -> None:
    """Raise `UserError` if a `Seq2Seq` cannot have these fields."""
    _require(config, config.source_vocab_size > 0, "source_vocab_size", "the size of the vocabulary")
    _require(config, config.target_vocab_size > 0, "target_vocab_size", "the size of the vocabulary")
    _require(
        config,
        not config.one_vocabulary or config.source_vocab_size == config.target_vocab_size,
        "tie_embeddings",
        "output or none if the languages have separate vocabularies (tokenizer.joint=False)",
    )


def check_classifier(config: ModelConfig) -> None:
    """Raise `UserError` if a `Classifier` cannot have these fields."""
    _require(config, config.source_vocab_size > 0, "source_vocab_size", "the size of the vocabulary")
    _require(config, config.num_classes > 1, "num_classes", "at least 2")


def _require(config: ModelConfig, condition: bool, field: str, remedy: str) -> None:
    if not condition:
        raise FieldError(field, getattr(config, field), remedy, where="config.model.{}".format)


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
