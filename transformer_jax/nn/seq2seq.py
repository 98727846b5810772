"""The encoder-decoder Transformer (section 3.1, figure 1)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from transformer_jax.nn.attention import causal_mask, segment_mask
from transformer_jax.nn.layers import DropoutKey, split_key
from transformer_jax.nn.model_config import ModelConfig, check_seq2seq
from transformer_jax.nn.stacks import (
    Decoder,
    Embedder,
    Encoder,
    positions_of,
    segments_of,
    shifted_segments_of,
    token_embedding,
)
from transformer_jax.sharding import standard_numerics


class Memory(NamedTuple):
    """The encoder's output as decoding uses it, constant while hypotheses are extended."""

    keys_values: tuple[tuple[Float[Array, "B N H S"], Float[Array, "B N S H"]], ...]
    """Keys and values of each decoder layer's cross-attention."""
    mask: Bool[Array, "B 1 1 S"]
    """True where the source has a token."""


class Cache(NamedTuple):
    """Keys and values of the previous tokens of K hypotheses per sentence; reordering hypotheses does not move them.

    The cache has L slots, one per token, each of K places: M = L K places in all.
    """

    keys_values: tuple[tuple[Float[Array, "B N H M"], Float[Array, "B N M H"]], ...]
    """Keys and values of each decoder layer's self-attention."""
    length: Int[Array, ""]
    """Number of filled slots."""
    ancestors: Int[Array, "B K L"]
    """Place, within each slot, of a hypothesis's token. Reordering hypotheses only changes these numbers."""

    @property
    def slots(self) -> int:
        """L."""
        return self.ancestors.shape[2]

    def lengthened(self, slots: int) -> "Cache":
        """The cache padded to `slots` slots, at least L."""
        more = slots - self.slots
        places = more * self.ancestors.shape[1]
        keys_values = tuple(
            (
                jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, places))),
                jnp.pad(values, ((0, 0), (0, 0), (0, places), (0, 0))),
            )
            for keys, values in self.keys_values
        )
        return Cache(keys_values, self.length, jnp.pad(self.ancestors, ((0, 0), (0, 0), (0, more))))

    def reordered(self, parents: Int[Array, "B K"]) -> "Cache":
        """The cache in which hypothesis k continues hypothesis `parents[:, k]`."""
        return self._replace(ancestors=jnp.take_along_axis(self.ancestors, parents[:, :, None], axis=1))

    def with_newest(self) -> "Cache":
        """The cache with its next slot assigned to the newest token of each hypothesis; `keys_values` is unchanged."""
        own = jnp.arange(self.ancestors.shape[1])[:, None]
        own = jnp.broadcast_to(own, (*self.ancestors.shape[:2], 1))
        ancestors = jax.lax.dynamic_update_slice_in_dim(self.ancestors, own, self.length, 2)
        return self._replace(length=self.length + 1, ancestors=ancestors)

    def mask(self) -> Bool[Array, "B 1 K M"]:
        """True where a place has a token of the hypothesis."""
        batch_size, beam_size, slots = self.ancestors.shape
        own = self.ancestors[..., None] == jnp.arange(beam_size)
        filled = (jnp.arange(slots) < self.length)[:, None]
        return (own & filled).reshape(batch_size, 1, beam_size, slots * beam_size)


class AttentionWeights(NamedTuple):
    """Every attention weight of one pass, stacked over layers."""

    encoder: Float[Array, "B layers N S S"]
    decoder: Float[Array, "B layers N T T"]
    cross: Float[Array, "B layers N T S"]


class Seq2Seq(nnx.Module):
    """The Transformer of figure 1.

    Used functionally: `graphdef, params = split(model)` once, then `nnx.merge(graphdef, params)(...)` inside `jax.jit`.
    """

    @standard_numerics()
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Initialize the parameters.

        Raises:
            UserError: if a field of `config` is invalid.
        """
        check_seq2seq(config)
        self.config = config
        sizes = config.source_vocab_size, config.target_vocab_size
        own_output = config.tie_embeddings in ("inputs", "none")
        self.source_embedding = None if config.one_vocabulary else token_embedding(config, sizes[0], rngs)
        self.target_embedding = token_embedding(config, sizes[1], rngs)
        self.output_embedding = token_embedding(config, sizes[1], rngs) if own_output else None
        self.output_bias = nnx.Param(jnp.zeros(sizes[1], jnp.float32)) if config.output_bias else None
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
        """Logits of the token that follows each target token.

        Args:
            source: source tokens, 0 where padded.
            target: target tokens, shifted right: BOS first, 0 where padded.
            source_segments: number of each token's sentence within its row, from 1; 0 is padding. Default: one sentence
                per row.
            target_segments: the same for the target; a target attends to the source with its number.
            source_positions: position of each token in its sentence. Default: counted from the start of the row.
            target_positions: the same for the target.
            dropout_key: source of dropout; None disables it.
            record: see `transformer_jax.nn.layers`.
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

    @standard_numerics()
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
        """The decoder's output, before the output layer; arguments as in `__call__`."""
        source_segments = segments_of(source) if source_segments is None else source_segments
        target_segments = shifted_segments_of(target) if target_segments is None else target_segments
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

    @standard_numerics()
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
        x = self.source_embedder(embedding, source, positions_of(source, positions), embedding_key)
        return self.encoder(x, segment_mask(segments, segments), dropout_key=layers_key, record=record)

    @standard_numerics()
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
        x = self.target_embedder(self.target_embedding, target, positions_of(target, positions), embedding_key)
        mask = segment_mask(segments, segments) & causal_mask(target.shape[1])
        memory_mask = segment_mask(segments, source_segments)
        return self.decoder(x, encoded, mask, memory_mask, dropout_key=layers_key, record=record)

    @property
    def output_table(self) -> Float[Array, "V D"]:
        """The rows of the output layer: the target embedding matrix, unless untied (section 3.4)."""
        embedding = self.target_embedding if self.output_embedding is None else self.output_embedding
        return embedding.table[...]

    @standard_numerics()
    def logits(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """The output layer: float32 logits over the vocabulary."""
        table = self.output_table.astype(x.dtype)
        flat = jnp.dot(x.reshape(-1, x.shape[-1]), table.T, preferred_element_type=jnp.float32)
        if self.output_bias is not None:
            flat += self.output_bias[...]
        return flat.reshape(*x.shape[:-1], table.shape[0])

    def attention_weights(self, source: Int[Array, "B S"], target: Int[Array, "B T"]) -> AttentionWeights:
        """Every attention weight for a `source` and a `target` that is shifted right."""
        record: list[Array] = []
        self(source, target, record=record)
        layers = len(self.encoder.layers)
        parts = record[:layers], record[layers::2], record[layers + 1 :: 2]
        return AttentionWeights(*(jnp.stack(part, axis=1) for part in parts))

    @standard_numerics()
    def remember(self, source: Int[Array, "B S"]) -> Memory:
        """Encode a source with one sentence per row, and project it once for all decoding steps."""
        segments = segments_of(source)
        encoded = self.encode(source, segments)
        projected = tuple(layer.cross_attention.keys_values(encoded) for layer in self.decoder.layers)
        kept = tuple((keys.transpose(0, 2, 3, 1), values.swapaxes(1, 2)) for keys, values in projected)
        return Memory(kept, (segments != 0)[:, None, None, :])

    @standard_numerics()
    def empty_cache(self, batch_size: int, beam_size: int, max_length: int) -> Cache:
        """A cache of `max_length` slots for `beam_size` hypotheses per sentence."""
        heads, places = self.config.num_heads, max_length * beam_size
        head_width = self.config.d_model // heads
        keys = jnp.zeros((batch_size, heads, head_width, places), self.config.dtype)
        return Cache(
            keys_values=tuple((keys, keys.swapaxes(2, 3)) for _ in self.decoder.layers),
            length=jnp.zeros((), jnp.int32),
            ancestors=jnp.zeros((batch_size, beam_size, max_length), jnp.int32),
        )

    @standard_numerics()
    def step(self, tokens: Int[Array, "B K"], cache: Cache, memory: Memory) -> tuple[Float[Array, "B K V"], Cache]:
        """Logits after one more token of every hypothesis: those of `__call__`, at the cost of one token."""
        x = self.target_embedder(self.target_embedding, tokens, jnp.broadcast_to(cache.length, tokens.shape))
        place = cache.length * tokens.shape[1]
        cache = cache.with_newest()
        mask = cache.mask()
        keys_values = []
        for layer, cached, remembered in zip(self.decoder.layers, cache.keys_values, memory.keys_values, strict=True):
            x, cached = layer.step(x, cached, place, mask, remembered, memory.mask)
            keys_values.append(cached)
        if self.decoder.norm is not None:
            x = self.decoder.norm(x)
        return self.logits(x), cache._replace(keys_values=tuple(keys_values))
