"""Both stacks of figure 1 over vectors that are embedded already: the counterpart of PyTorch's `nn.Transformer`."""

from flax import nnx
from jaxtyping import Array, Bool, Float

from transformer_jax.layers import DropoutKey, split_key
from transformer_jax.models.config import ModelConfig, check_transformer
from transformer_jax.models.stacks import Decoder, Encoder


class Transformer(nnx.Module):
    """Encoder and decoder, without embeddings and output layer (section 3.1). Used functionally, as `Seq2Seq` is."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        """Draw the parameters.

        Args:
            config: sizes and options; those of vocabularies, embeddings and positions mean nothing here.
            rngs: source of the parameters.

        Raises:
            UserError: if two fields of `config` contradict each other.
        """
        check_transformer(config)
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def __call__(
        self,
        source: Float[Array, "B S D"],
        target: Float[Array, "B T D"],
        source_mask: Bool[Array, "#B 1 #S S"] | None = None,
        target_mask: Bool[Array, "#B 1 #T T"] | None = None,
        memory_mask: Bool[Array, "#B 1 #T S"] | None = None,
        *,
        dropout_key: DropoutKey = None,
        record: list[Array] | None = None,
    ) -> Float[Array, "B T D"]:
        """The decoder's output at each target position.

        Args:
            source: embedded source, positions added.
            target: embedded target, shifted right, positions added.
            source_mask: True where a source position may look at another; None: everywhere. PyTorch's boolean masks
                mean the opposite. See `attention.padding_mask`.
            target_mask: the same among target positions. Nothing is causal unless asked for: `attention.causal_mask`.
            memory_mask: True where a target position may look at a source position; None: everywhere.
            dropout_key: source of dropout; None for none.
            record: see `transformer_jax.layers`.
        """
        encoder_key, decoder_key = split_key(dropout_key, 2)
        memory = self.encoder(source, source_mask, dropout_key=encoder_key, record=record)
        return self.decoder(target, memory, target_mask, memory_mask, dropout_key=decoder_key, record=record)
