"""Sizes and options of every model of this package."""

from dataclasses import dataclass
from functools import partial

from transformer_jax.nn.layers import ACTIVATIONS
from transformer_jax.nn.scanned import REMATS
from transformer_jax.system.errors import UserError

TYINGS = ("all", "output", "inputs", "none")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a Transformer; the defaults of the options are the paper's.

    The sizes are small enough for a laptop; the paper's base model has `d_model=512, num_heads=8,
    d_ff=2048` and six layers on either side (table 3).
    """

    d_model: int = 256
    num_heads: int = 4
    d_ff: int = 1024
    num_encoder_layers: int = 3
    num_decoder_layers: int = 3
    dropout_rate: float = 0.1
    """On embeddings and on each sub-layer's output (section 5.4)."""
    attention_dropout_rate: float = 0.0
    attention_implementation: str = "xla"
    """xla, or cudnn for the fused kernel of NVIDIA GPUs (bfloat16, no attention dropout)."""
    norm_first: bool = False
    """False: LayerNorm(x + Sublayer(x)), as in section 3.1. True: x + Sublayer(LayerNorm(x))."""
    final_norm: bool = False
    """End post-norm stacks with a layer normalisation, as PyTorch's nn.Transformer does; pre-norm ones always do."""
    activation: str = "relu"
    """One of relu, gelu, swish."""
    positions: str = "sinusoidal"
    """One of sinusoidal (section 3.5), learned (table 3, row E)."""
    max_positions: int = 1024
    """Rows of a learned position table; sinusoids need no bound."""
    tie_embeddings: str = "all"
    """all: source, target and output share one matrix (section 3.4; needs one vocabulary);
    output: target and output share one; inputs: source and target share one (one vocabulary); none: three matrices."""
    output_bias: bool = False
    """Add a bias to the logits."""
    scale_embeddings: bool = True
    """Multiply embeddings by sqrt(d_model) (section 3.4)."""
    dtype: str = "float32"
    """Of the computation: float32 or bfloat16. Parameters and softmax stay float32."""
    scan_layers: bool = False
    """Stack the parameters of all layers of a stack and loop over them: compiles as fast however many there are."""
    remat: str = "none"
    """What of a layer's inside the backward pass computes again, to save memory: none, dots (all but the products with
    weights), full (all)."""
    source_vocab_size: int = 0
    """0: taken from the tokenizer."""
    target_vocab_size: int = 0
    """0: taken from the tokenizer. A classifier has none."""
    num_classes: int = 0
    """Of a classifier; 0: taken from the data."""
    pooling: str = "mean"
    """What a classifier makes of the encoder's output: mean (over the tokens), first (the first token's)."""

    @property
    def one_vocabulary(self) -> bool:
        """Whether source and target share their embeddings, and so must share their vocabulary."""
        return self.tie_embeddings in ("all", "inputs")

    @property
    def position_limit(self) -> int | None:
        """Tokens that a sentence can have at most; None: no bound."""
        return self.max_positions if self.positions == "learned" else None


def check_seq2seq(config: ModelConfig) -> None:
    """Raise `UserError` if two fields contradict each other, or one is out of range, for a `Seq2Seq`."""
    _check(config)
    _require(config, config.source_vocab_size > 0, "source_vocab_size", "the size of the vocabulary")
    _require(config, config.target_vocab_size > 0, "target_vocab_size", "the size of the vocabulary")
    _require(config, config.tie_embeddings in TYINGS, "tie_embeddings", f"one of {', '.join(TYINGS)}")
    _require(
        config,
        not config.one_vocabulary or config.source_vocab_size == config.target_vocab_size,
        "tie_embeddings",
        "output or none where the languages have vocabularies of their own (tokenizer.joint=False)",
    )


def check_transformer(config: ModelConfig) -> None:
    """Raise `UserError` if two fields contradict each other, or one is out of range, for a `Transformer`."""
    _check(config)


def check_classifier(config: ModelConfig) -> None:
    """Raise `UserError` if two fields contradict each other, or one is out of range, for a `Classifier`."""
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
