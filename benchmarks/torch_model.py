"""The same models in PyTorch, built from its `nn.Transformer` as in its tutorials."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.workload import Shape
from transformer_jax.data import PAD
from transformer_jax.data.packing import NO_LABEL

MAX_LENGTH = 512


class TorchTranslator(nn.Module):
    """`nn.Transformer` with one embedding table, shared with the output layer, and sinusoids."""

    def __init__(self, shape: Shape, label_smoothing: float) -> None:
        """Initialize the table as we do, the rest as tutorials do."""
        super().__init__()
        self.num_heads, self.label_smoothing = shape.num_heads, label_smoothing
        self.embedding = Embedding(shape)
        with warnings.catch_warnings():
            # It warns that pre-norm layers do not support nested tensors, which only inference uses.
            warnings.simplefilter("ignore", UserWarning)
            self.transformer = nn.Transformer(
                shape.d_model,
                shape.num_heads,
                shape.num_encoder_layers,
                shape.num_decoder_layers,
                shape.d_ff,
                shape.dropout_rate,
                batch_first=True,
                norm_first=shape.norm_first,
            )
        _draw(self.transformer)

    def forward(
        self, source: Tensor, target: Tensor, positions: tuple[Tensor, Tensor], masks: dict[str, Any]
    ) -> Tensor:
        """Logits; `masks` are arguments of `nn.Transformer`."""
        x, y = self.embedding(source, positions[0]), self.embedding(target, positions[1])
        return functional.linear(self.transformer(x, y, **masks), self.embedding.table.weight)

    def loss(self, batch: dict[str, Tensor], packed: bool, label_smoothing: float) -> Tensor:
        """Mean smoothed cross-entropy of the tokens."""
        masks = self.block_masks(batch) if packed else self.padding_masks(batch)
        positions = batch["source_positions"], batch["target_positions"]
        logits = self(batch["source"], batch["target"], positions, masks)
        return functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=PAD, label_smoothing=label_smoothing
        )

    def padding_masks(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Masks for one sentence per row."""
        source_padding, target_padding = batch["source"] == PAD, batch["target"] == PAD
        length = batch["target"].shape[1]
        return {
            "tgt_mask": torch.ones(length, length, dtype=torch.bool, device=source_padding.device).triu(1),
            "tgt_is_causal": True,
            "src_key_padding_mask": source_padding,
            "tgt_key_padding_mask": target_padding,
            "memory_key_padding_mask": source_padding,
        }

    def block_masks(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        """Masks for packed rows; padding attends to padding, as a fully masked row would give NaN."""
        source, target = batch["source_segments"], batch["target_segments"]
        length = target.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)

        def apart(queries: Tensor, keys: Tensor) -> Tensor:
            return queries[:, :, None] != keys[:, None, :]

        masks = {
            "src_mask": apart(source, source),
            "tgt_mask": apart(target, target) | future,
            "memory_mask": apart(target, source),
        }
        return {name: mask.repeat_interleave(self.num_heads, 0) for name, mask in masks.items()}


class TorchClassifier(nn.Module):
    """`nn.TransformerEncoder`, mean over the tokens, linear layer."""

    def __init__(self, shape: Shape, label_smoothing: float) -> None:
        """Initialize the parameters."""
        super().__init__()
        self.label_smoothing = label_smoothing
        self.embedding = Embedding(shape)
        layer = nn.TransformerEncoderLayer(
            shape.d_model,
            shape.num_heads,
            shape.d_ff,
            shape.dropout_rate,
            batch_first=True,
            norm_first=shape.norm_first,
        )
        self.encoder = nn.TransformerEncoder(
            layer, shape.num_encoder_layers, nn.LayerNorm(shape.d_model), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(shape.dropout_rate)
        self.head = nn.Linear(shape.d_model, shape.num_classes)
        _draw(self.encoder)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits of the classes."""
        padding = tokens == PAD
        x = self.encoder(self.embedding(tokens, positions), src_key_padding_mask=padding)
        real = (~padding).float()[..., None]
        return self.head(self.dropout((x * real).sum(1) / real.sum(1)))

    def loss(self, batch: dict[str, Tensor], packed: bool, label_smoothing: float) -> Tensor:
        """Mean smoothed cross-entropy of the texts, one per row."""
        assert not packed
        logits = self(batch["tokens"], batch["positions"])
        return functional.cross_entropy(
            logits, batch["labels"][:, 0], ignore_index=NO_LABEL, label_smoothing=label_smoothing
        )


class Embedding(nn.Module):
    """A table times sqrt(d_model), sinusoids, dropout."""

    sinusoids: Tensor

    def __init__(self, shape: Shape) -> None:
        """Initialize the table."""
        super().__init__()
        self.table = nn.Embedding(shape.vocab_size, shape.d_model, padding_idx=PAD)
        nn.init.normal_(self.table.weight, std=shape.d_model**-0.5)
        self.scale = math.sqrt(shape.d_model)
        self.dropout = nn.Dropout(shape.dropout_rate)
        rates = torch.exp(torch.arange(0, shape.d_model, 2) * (-math.log(10_000) / shape.d_model))
        angles = torch.arange(MAX_LENGTH)[:, None] * rates
        self.register_buffer("sinusoids", torch.stack((angles.sin(), angles.cos()), -1).flatten(1))

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Vectors of tokens at their positions."""
        return self.dropout(self.table(tokens) * self.scale + self.sinusoids[positions])


def make_model(shape: Shape, label_smoothing: float) -> TorchTranslator | TorchClassifier:
    """The model for a shape."""
    return (TorchClassifier if shape.num_classes else TorchTranslator)(shape, label_smoothing)


def drop_as_ours(model: nn.Module) -> None:
    """Apply dropout only as in section 5.4: not to attention weights or inside the feed-forward layer."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            module.dropout = nn.Identity()


def _draw(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
