"""Logits, loss and gradients equal those of PyTorch's `nn.Transformer` with the same weights."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.nn.attention import sinusoidal_positions
from transformer_jax.nn.losses import smoothed_cross_entropy

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[peers]'")

SIZES = {"d_model": 32, "num_heads": 4, "d_ff": 48, "num_encoder_layers": 2, "num_decoder_layers": 2}
SOURCE_VOCAB, TARGET_VOCAB = 17, 19
SMOOTHING = 0.1
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class TorchSeq2Seq(torch.nn.Module):
    """`nn.Transformer` between embeddings and output layer, with final norms only in pre-norm models, as ours."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        options = {
            "dropout": 0.0,
            "activation": config.activation,
            "batch_first": True,
            "norm_first": config.norm_first,
        }
        sizes = config.d_model, config.num_heads, config.d_ff

        def final_norm() -> torch.nn.Module | None:
            return torch.nn.LayerNorm(config.d_model) if config.norm_first else None

        encoder = torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(*sizes, **options),
            config.num_encoder_layers,
            final_norm(),
            enable_nested_tensor=False,
        )
        decoder = torch.nn.TransformerDecoder(
            torch.nn.TransformerDecoderLayer(*sizes, **options), config.num_decoder_layers, final_norm()
        )
        self.transformer = torch.nn.Transformer(
            config.d_model, config.num_heads, custom_encoder=encoder, custom_decoder=decoder, batch_first=True
        )
        self.target_embedding = torch.nn.Embedding(config.target_vocab_size, config.d_model)
        if config.tie_embeddings != "all":
            self.source_embedding = torch.nn.Embedding(config.source_vocab_size, config.d_model)
        if config.tie_embeddings == "none":
            self.output_embedding = torch.nn.Embedding(config.target_vocab_size, config.d_model)

    def embed(self, embedding, tokens):
        positions = np.array(sinusoidal_positions(jnp.arange(tokens.shape[1]), self.config.d_model))
        return embedding(tokens) * self.config.d_model**0.5 + torch.from_numpy(positions)

    def forward(self, source, target):
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        out = self.transformer(
            self.embed(getattr(self, "source_embedding", self.target_embedding), source),
            self.embed(self.target_embedding, target),
            tgt_mask=causal,
            src_key_padding_mask=source == 0,
            tgt_key_padding_mask=target == 0,
            memory_key_padding_mask=source == 0,
        )
        return out @ getattr(self, "output_embedding", self.target_embedding).weight.T


def layer_pairs(ours, theirs, sublayers: dict[str, str], norms: tuple[str, ...]) -> Iterator:
    """(our parameter group, name in it, their tensor, its rows, whether transposed) for each parameter of a layer."""
    for name, attention in sublayers.items():
        attention = getattr(theirs, attention)
        for third, projection in enumerate(("query", "key", "value")):
            rows = slice(third * SIZES["d_model"], (third + 1) * SIZES["d_model"])
            yield ours[name][projection], "kernel", attention.in_proj_weight, rows, True
            yield ours[name][projection], "bias", attention.in_proj_bias, rows, False
        yield from linear_pairs(ours[name]["out"], attention.out_proj)
    yield from linear_pairs(ours["feed_forward"]["wide"], theirs.linear1)
    yield from linear_pairs(ours["feed_forward"]["narrow"], theirs.linear2)
    for number, name in enumerate(norms, start=1):
        yield from norm_pairs(ours[f"{name}_residual"]["norm"], getattr(theirs, f"norm{number}"))


def linear_pairs(ours, theirs) -> Iterator:
    yield ours, "kernel", theirs.weight, slice(None), True
    yield ours, "bias", theirs.bias, slice(None), False


def norm_pairs(ours, theirs) -> Iterator:
    yield ours, "scale", theirs.weight, slice(None), False
    yield ours, "bias", theirs.bias, slice(None), False


def pairs(ours, theirs: TorchSeq2Seq) -> Iterator:
    """Each of our parameters with theirs."""
    encoder, decoder = theirs.transformer.encoder, theirs.transformer.decoder
    for number, layer in enumerate(encoder.layers):
        group = ours["encoder"]["layers"][number]
        yield from layer_pairs(group, layer, {"self_attention": "self_attn"}, ("self_attention", "feed_forward"))
    for number, layer in enumerate(decoder.layers):
        yield from layer_pairs(
            ours["decoder"]["layers"][number],
            layer,
            {"self_attention": "self_attn", "cross_attention": "multihead_attn"},
            ("self_attention", "cross_attention", "feed_forward"),
        )
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        if stack.norm is not None:
            yield from norm_pairs(ours[side]["norm"], stack.norm)
    for name in ("source_embedding", "target_embedding", "output_embedding"):
        if name in ours:
            yield ours[name], "table", getattr(theirs, name).weight, slice(None), False


def random_params(params):
    """Parameters moved away from their initial zeros and ones, which would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = (0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True))
    return jax.tree.unflatten(tree, [leaf + more for leaf, more in zip(leaves, noise, strict=True)])


@pytest.mark.parametrize(
    ("norm_first", "activation", "tie_embeddings"),
    [(False, "relu", "all"), (True, "relu", "all"), (False, "gelu", "none"), (True, "gelu", "output")],
)
def test_same_weights_give_the_same_logits_loss_and_gradients(norm_first, activation, tie_embeddings):
    config = ModelConfig(
        **SIZES,
        norm_first=norm_first,
        activation=activation,
        tie_embeddings=tie_embeddings,
        source_vocab_size=TARGET_VOCAB if tie_embeddings == "all" else SOURCE_VOCAB,
        target_vocab_size=TARGET_VOCAB,
    )
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))
    params = random_params(params)
    theirs = TorchSeq2Seq(config)
    with torch.no_grad():
        for group, name, tensor, rows, transposed in pairs(params, theirs):
            value = torch.from_numpy(np.array(group[name]))
            tensor[rows] = value.T if transposed else value

    rng = np.random.default_rng(2)
    source = rng.integers(1, SOURCE_VOCAB, (3, 7)) * (np.arange(7) < [[7], [4], [1]])
    target = rng.integers(1, TARGET_VOCAB, (3, 6)) * (np.arange(6) < [[6], [2], [5]])
    labels = rng.integers(1, TARGET_VOCAB, (3, 6)) * (target != 0)

    @jax.jit
    def loss_and_logits(params):
        logits = nnx.merge(graphdef, params)(jnp.asarray(source), jnp.asarray(target))
        losses = smoothed_cross_entropy(logits, jnp.asarray(labels), SMOOTHING)
        return jnp.sum(losses * (labels != 0)), logits

    (loss, logits), gradients = jax.value_and_grad(loss_and_logits, has_aux=True)(params)

    their_logits = theirs(torch.from_numpy(source), torch.from_numpy(target))
    their_loss = torch.nn.functional.cross_entropy(
        their_logits.transpose(1, 2),
        torch.from_numpy(labels),
        ignore_index=0,
        label_smoothing=SMOOTHING,
        reduction="sum",
    )
    their_loss.backward()

    np.testing.assert_allclose(logits[target != 0], their_logits.detach().numpy()[target != 0], **TOLERANCE)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-6)
    compared = 0
    for group, name, tensor, rows, transposed in pairs(gradients, theirs):
        expected = tensor.grad[rows].numpy()
        np.testing.assert_allclose(group[name], expected.T if transposed else expected, **TOLERANCE)
        compared += expected.size
    assert compared == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert compared == sum(parameter.numel() for parameter in theirs.parameters())
