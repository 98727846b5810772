"""The encoder-decoder Transformer as Flax NNX modules (section 3.1, figure 1)."""

from dataclasses import dataclass


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
    norm_first: bool = False
    """False: LayerNorm(x + Sublayer(x)), as in section 3.1. True: x + Sublayer(LayerNorm(x))."""
    activation: str = "relu"
    """One of relu, gelu, swish."""
    positions: str = "sinusoidal"
    """One of sinusoidal (section 3.5), learned (table 3, row E)."""
    max_positions: int = 1024
    """Rows of a learned position table; sinusoids need no bound."""
    tie_embeddings: str = "all"
    """all: source, target and output share one matrix (section 3.4; needs one vocabulary);
    output: target and output share one; none: three matrices."""
    scale_embeddings: bool = True
    """Multiply embeddings by sqrt(d_model) (section 3.4)."""
    dtype: str = "float32"
    """Of the computation: float32 or bfloat16. Parameters and softmax stay float32."""
    source_vocab_size: int = 0
    """0: taken from the tokenizer."""
    target_vocab_size: int = 0
    """0: taken from the tokenizer."""
