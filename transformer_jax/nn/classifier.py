"""A text classifier: the encoder of figure 1, pooling and a linear layer."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.nn.attention import dropout, segment_mask
from transformer_jax.nn.layers import DropoutKey, Linear, split_key
from transformer_jax.nn.model_config import ModelConfig, check_classifier
from transformer_jax.nn.stacks import Embedder, Encoder, positions_of, segments_of, token_embedding
from transformer_jax.sharding import standard_numerics


class Classifier(nnx.Module):
    """Encoder, pooling, dropout, linear layer. Used functionally, like `Seq2Seq`."""

    @standard_numerics()
    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Initialize the parameters.

        Raises:
            UserError: if a field of `config` is invalid.
        """
        check_classifier(config)
        self.config = config
        self.embedding = token_embedding(config, config.source_vocab_size, rngs)
        self.embedder = Embedder(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.head = Linear(config.d_model, config.num_classes, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        *,
        segments: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        num_segments: int = 1,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B {num_segments} C"]:
        """Class logits of each text.

        Args:
            tokens: token ids, 0 where padded.
            segments: number of each token's text within its row, from 1; 0 is padding. Default: one text per row.
            positions: position of each token in its text. Default: counted from the start of the row.
            num_segments: maximum number of texts in a row. Logits of missing texts are meaningless.
            dropout_key: source of dropout; None disables it.
            record: see `transformer_jax.nn.layers`.
        """
        segments = segments_of(tokens) if segments is None else segments
        positions = positions_of(tokens, positions)
        encode_key, classify_key = split_key(dropout_key, 2)
        x = self.encode(tokens, segments, positions, dropout_key=encode_key, record=record)
        return self.classify(x, segments, positions, num_segments=num_segments, dropout_key=classify_key)

    @standard_numerics()
    def encode(
        self,
        tokens: Int[Array, "B S"],
        segments: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B S D"]:
        """The encoder's output; arguments as in `__call__`."""
        embedding_key, layers_key = split_key(dropout_key, 2)
        x = self.embedder(self.embedding, tokens, positions, embedding_key)
        return self.encoder(x, segment_mask(segments, segments), dropout_key=layers_key, record=record)

    @standard_numerics()
    def classify(
        self,
        x: Float[Array, "B S D"],
        segments: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        *,
        num_segments: int,
        dropout_key: DropoutKey = None,
    ) -> Float[Array, "B {num_segments} C"]:
        """Logits from the encoder's output; arguments as in `__call__`."""
        pooled = pool(x, segments, num_segments, positions if self.config.pooling == "first" else None)
        return self.head(dropout(pooled, self.config.dropout_rate, dropout_key))


def pool(
    x: Float[Array, "B S D"],
    segments: Int[Array, "B S"],
    num_segments: int,
    positions: Int[Array, "B S"] | None = None,
) -> Float[Array, "B {num_segments} D"]:
    """One float32 vector per text: the mean over its tokens.

    Args:
        x: a vector per token.
        segments: number of each token's text within its row, from 1; 0 is padding.
        num_segments: maximum number of texts in a row; missing texts get zeros.
        positions: positions of the tokens in their texts; if given, the first token's vector replaces the mean.
    """
    weights = (segments[:, None, :] == jnp.arange(1, num_segments + 1, dtype=segments.dtype)[None, :, None]).astype(
        jnp.float32
    )
    if positions is not None:
        weights *= (positions[:, None, :] == 0).astype(jnp.float32)
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1.0)
    return jnp.einsum("BKS,BSD->BKD", weights, x.astype(jnp.float32))
