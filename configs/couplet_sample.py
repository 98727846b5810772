"""Antitheses: the embedded data set of couplets, for a first look.

Command: transformer-jax train --config couplet_sample
Hardware and time: 2 cores of an AMD EPYC, 1.1 minutes (2026-11-23)
Score: 500 of 500 unseen upper lines answered as the lexicon does (validation; test alike), all rules kept
"""

from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config() -> ConfigDict:
    """A small Transformer that answers each word with its opposite."""
    config = default_config()
    config.task = "couplet"
    config.data.update(name="antitheses", max_length=24, row_length=48)
    config.tokenizer.kind = "char"
    config.model.update(d_model=128, num_heads=4, d_ff=256, num_encoder_layers=2, num_decoder_layers=2)
    config.model.update(dropout_rate=0.0, norm_first=True)
    config.optim.update(schedule="cosine", lr=3e-3, warmup_steps=50, label_smoothing=0.0)
    config.training.update(
        num_steps=400, log_every=50, eval_every=200, checkpoint_every=200, metric="exact_match", num_samples=5
    )
    return config


def get_hyper(h: Any) -> list[dict[str, Any]]:
    """A grid of learning rates and sizes of the feed-forward layers."""
    return h.product([h.sweep("optim.lr", [1e-3, 3e-3]), h.sweep("model.d_ff", [128, 256])])
