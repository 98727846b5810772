"""The encoder-decoder Transformer as Flax NNX modules (section 3.1, figure 1)."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.attention import causal_mask, dropout, segment_mask
from transformer_jax.errors import UserError
from transformer_jax.layers import ACTIVATIONS, DecoderLayer, DropoutKey, Embedding, EncoderLayer, LayerNorm, split_key
from transformer_jax.positions import sinusoidal_positions


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

    @property
    def position_limit(self) -> int | None:
        """Tokens that a sentence can have at most; None: no bound."""
        return self.max_positions if self.positions == "learned" else None


class Embedder(nnx.Module):
    """Token embeddings plus positions, with dropout on the sum (sections 3.4, 3.5 and 5.4)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.learned = None if config.positions == "sinusoidal" else _position_table(config, rngs)

    def __call__(
        self,
        embedding: Embedding,
        tokens: Int[Array, "*batch"],
        positions: Int[Array, "*batch"],
        dropout_key: DropoutKey = None,
    ) -> Float[Array, "*batch D"]:
        x = embedding(tokens)
        if self.learned is None:
            encoding = sinusoidal_positions(positions, self.config.d_model)
        else:
            encoding = self.learned[...][positions]
        return dropout(x + encoding.astype(x.dtype), self.config.dropout_rate, dropout_key)


class Encoder(nnx.Module):
    """The stack of encoder layers (section 3.1), over embedded tokens."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [EncoderLayer(**_layer_options(config), rngs=rngs) for _ in range(config.num_encoder_layers)]
        )
        self.norm = LayerNorm(config.d_model) if config.norm_first else None

    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #S S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B S D"]:
        for layer, key in zip(self.layers, split_key(dropout_key, len(self.layers)), strict=True):
            x = layer(x, mask, dropout_key=key, record=record)
        return x if self.norm is None else self.norm(x)


class Decoder(nnx.Module):
    """The stack of decoder layers (section 3.1), over embedded tokens."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [DecoderLayer(**_layer_options(config), rngs=rngs) for _ in range(config.num_decoder_layers)]
        )
        self.norm = LayerNorm(config.d_model) if config.norm_first else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        memory: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #T T"] | None = None,
        memory_mask: Bool[Array, "#B 1 #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        for layer, key in zip(self.layers, split_key(dropout_key, len(self.layers)), strict=True):
            x = layer(x, memory, mask, memory_mask, dropout_key=key, record=record)
        return x if self.norm is None else self.norm(x)


class Memory(NamedTuple):
    """What decoding needs of the encoder: fixed while the hypotheses grow."""

    keys_values: tuple[tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]], ...]
    """Of the cross-attention of each decoder layer."""
    mask: Bool[Array, "B 1 1 S"]


class Cache(NamedTuple):
    """What decoding remembers of the tokens before: grows and moves with the hypotheses."""

    keys_values: tuple[tuple[Float[Array, "B K L N H"], Float[Array, "B K L N H"]], ...]
    """Of the self-attention of each decoder layer, in L slots."""
    length: Int[Array, ""]
    """How many slots are filled."""


class AttentionWeights(NamedTuple):
    """Every attention weight of one pass; the second axis counts layers."""

    encoder: Float[Array, "B layers N S S"]
    decoder: Float[Array, "B layers N T T"]
    cross: Float[Array, "B layers N T S"]


class Seq2Seq(nnx.Module):
    """The Transformer of figure 1.

    Used functionally: `graphdef, params = split(model)` once, then `nnx.merge(graphdef, params)(...)` inside `jax.jit`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Draw the parameters.

        Raises:
            UserError: if two fields of `config` contradict each other.
        """
        _check(config)
        self.config = config
        sizes = config.source_vocab_size, config.target_vocab_size
        tied = config.tie_embeddings
        self.source_embedding = None if tied == "all" else _embedding(config, sizes[0], rngs)
        self.target_embedding = _embedding(config, sizes[1], rngs)
        self.output_embedding = _embedding(config, sizes[1], rngs) if tied == "none" else None
        self.source_embedder, self.target_embedder = (Embedder(config, rngs=rngs) for _ in range(2))
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        *,
        source_segments: Int[Array, "B S"] | None = None,
        target_segments: Int[Array, "B T"] | None = None,
        source_positions: Int[Array, "B S"] | None = None,
        target_positions: Int[Array, "B T"] | None = None,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each target token.

        Args:
            source: source tokens, 0 where padded.
            target: target tokens, shifted right: the first is the start token.
            source_segments: which sentence of its row a token belongs to, from 1; 0 is padding. None: one a row.
            target_segments: the same for the target; equal numbers belong together.
            source_positions: place of each token in its sentence. None: counted from the start of the row.
            target_positions: the same for the target.
            dropout_key: source of dropout; None for none.
            record: see `transformer_jax.layers`.
        """
        return self.logits(
            self.hidden(
                source,
                target,
                source_segments=source_segments,
                target_segments=target_segments,
                source_positions=source_positions,
                target_positions=target_positions,
                dropout_key=dropout_key,
                record=record,
            )
        )

    def hidden(
        self,
        source: Int[Array, "B S"],
        target: Int[Array, "B T"],
        *,
        source_segments: Int[Array, "B S"] | None = None,
        target_segments: Int[Array, "B T"] | None = None,
        source_positions: Int[Array, "B S"] | None = None,
        target_positions: Int[Array, "B T"] | None = None,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """What the output layer makes logits of; arguments as of `__call__`."""
        source_segments = _segments(source) if source_segments is None else source_segments
        target_segments = _segments(target) if target_segments is None else target_segments
        encoder_key, decoder_key = split_key(dropout_key, 2)
        encoded = self.encode(source, source_segments, source_positions, dropout_key=encoder_key, record=record)
        return self.decode(
            target,
            encoded,
            target_segments,
            source_segments,
            target_positions,
            dropout_key=decoder_key,
            record=record,
        )

    def encode(
        self,
        source: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B S D"]:
        """The encoder's output."""
        embedding_key, layers_key = split_key(dropout_key, 2)
        embedding = self.target_embedding if self.source_embedding is None else self.source_embedding
        x = self.source_embedder(embedding, source, _count(source, positions), embedding_key)
        return self.encoder(x, segment_mask(segments, segments), dropout_key=layers_key, record=record)

    def decode(
        self,
        target: Int[Array, "B T"],
        encoded: Float[Array, "B S D"],
        segments: Int[Array, "B T"],
        source_segments: Int[Array, "B S"],
        positions: Int[Array, "B T"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """The decoder's output for all target positions at once."""
        embedding_key, layers_key = split_key(dropout_key, 2)
        x = self.target_embedder(self.target_embedding, target, _count(target, positions), embedding_key)
        mask = segment_mask(segments, segments) & causal_mask(target.shape[1])
        memory_mask = segment_mask(segments, source_segments)
        return self.decoder(x, encoded, mask, memory_mask, dropout_key=layers_key, record=record)

    @property
    def output_table(self) -> Float[Array, "V D"]:
        """The rows of the output layer: the embedding matrix of the target, unless untied (section 3.4)."""
        embedding = self.target_embedding if self.output_embedding is None else self.output_embedding
        return embedding.table[...]

    def logits(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """The output layer: float32 logits of every word of the vocabulary."""
        table = self.output_table.astype(x.dtype)
        flat = jnp.dot(x.reshape(-1, x.shape[-1]), table.T, preferred_element_type=jnp.float32)
        return flat.reshape(*x.shape[:-1], table.shape[0])

    def attention_weights(self, source: Int[Array, "B S"], target: Int[Array, "B T"]) -> AttentionWeights:
        """The weights of every attention when `target` (shifted right) is read beside `source`."""
        record: list[Array] = []
        self(source, target, record=record)
        layers = len(self.encoder.layers)
        parts = record[:layers], record[layers::2], record[layers + 1 :: 2]
        return AttentionWeights(*(jnp.stack(part, axis=1) for part in parts))

    def remember(self, source: Int[Array, "B S"]) -> Memory:
        """Read the source, one sentence a row, and project the encoder's output once for all steps of decoding."""
        segments = _segments(source)
        encoded = self.encode(source, segments)
        keys_values = tuple(layer.cross_attention.keys_values(encoded) for layer in self.decoder.layers)
        return Memory(keys_values, (segments != 0)[:, None, None, :])

    def empty_cache(self, batch_size: int, beam_size: int, max_length: int) -> Cache:
        """A cache of `max_length` slots for `beam_size` hypotheses of each sentence."""
        heads = self.config.num_heads
        shape = (batch_size, beam_size, max_length, heads, self.config.d_model // heads)
        zeros = jnp.zeros(shape, self.config.dtype)
        return Cache(tuple((zeros, zeros) for _ in self.decoder.layers), jnp.zeros((), jnp.int32))

    def step(self, tokens: Int[Array, "B K"], cache: Cache, memory: Memory) -> tuple[Float[Array, "B K V"], Cache]:
        """Logits after one more token of every hypothesis; equal to those of `__call__`, at the cost of one token."""
        positions = jnp.broadcast_to(cache.length, tokens.shape)
        x = self.target_embedder(self.target_embedding, tokens, positions)
        keys_values = []
        for layer, cached, remembered in zip(self.decoder.layers, cache.keys_values, memory.keys_values, strict=True):
            x, cached = layer.step(x, cached, cache.length, remembered, memory.mask)
            keys_values.append(cached)
        if self.decoder.norm is not None:
            x = self.decoder.norm(x)
        return self.logits(x), Cache(tuple(keys_values), cache.length + 1)


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A module as its static structure and its parameters, a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return graphdef, nnx.to_pure_dict(state)


def structure(config: ModelConfig) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The graph of a model, and the shapes of its parameters in place of them; nothing is drawn.

    Raises:
        UserError: if two fields of `config` contradict each other.
    """
    return split(nnx.eval_shape(lambda: Seq2Seq(config, rngs=nnx.Rngs(0))))


def _segments(tokens: Int[Array, "B T"]) -> Int[Array, "B T"]:
    return (tokens != 0).astype(jnp.int32)


def _count(tokens: Int[Array, "B T"], positions: Int[Array, "B T"] | None) -> Int[Array, "B T"]:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions


def _embedding(config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> Embedding:
    return Embedding(
        vocab_size, config.d_model, scale=config.scale_embeddings, dtype=jnp.dtype(config.dtype), rngs=rngs
    )


def _position_table(config: ModelConfig, rngs: nnx.Rngs) -> nnx.Param:
    shape = (config.max_positions, config.d_model)
    return nnx.Param(jax.random.normal(rngs.params(), shape) * config.d_model**-0.5)


def _layer_options(config: ModelConfig) -> dict[str, Any]:
    names = ("d_model", "num_heads", "d_ff", "dropout_rate", "attention_dropout_rate", "norm_first", "activation")
    return {name: getattr(config, name) for name in names} | {
        "dtype": jnp.dtype(config.dtype),
        "implementation": config.attention_implementation,
    }


def _check(config: ModelConfig) -> None:
    def require(condition: bool, field: str, remedy: str) -> None:
        if not condition:
            raise UserError(f"config.model.{field} is {getattr(config, field)!r}, but must be {remedy}.")

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
    require(config.tie_embeddings in ("all", "output", "none"), "tie_embeddings", "all, output or none")
    require(config.dtype in ("float32", "bfloat16"), "dtype", "float32 or bfloat16")
    require(config.target_vocab_size > 0, "target_vocab_size", "the size of the vocabulary")
    require(
        config.tie_embeddings != "all" or config.source_vocab_size == config.target_vocab_size,
        "tie_embeddings",
        "output or none where the languages have vocabularies of their own (tokenizer.joint=False)",
    )
