"""Number words, German to English: the embedded data set, for a first look.

Command: transformer-jax train (the same as transformer-jax train --config numerals)
Hardware and time: 2 cores of an AMD EPYC, 1.5 minutes (2026-11-23)
Score: 1,000 of 1,000 unseen numbers right (validation), 1,000 of 1,000 (test)
"""

from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config() -> ConfigDict:
    """A small Transformer, post-norm as the paper's, that reads numbers below a million."""
    config = default_config()
    config.data.update(name="numerals", source_language="de", target_language="en", max_length=64, row_length=128)
    # Few pieces, so that both sides of a pair have about as many tokens and rows of both fill up.
    config.tokenizer.update(vocab_size=120, max_texts=20_000)
    config.model.update(d_model=128, num_heads=4, d_ff=256, num_encoder_layers=2, num_decoder_layers=2)
    config.model.dropout_rate = 0.0
    config.optim.update(schedule="cosine", lr=2e-3, warmup_steps=100, label_smoothing=0.0)
    config.training.update(
        num_steps=400, log_every=50, eval_every=200, checkpoint_every=200, metric="exact_match", num_samples=5
    )
    return config


def get_hyper(h: Any) -> list[dict[str, Any]]:
    """The learning rate, drawn, and its warm-up, a grid: --trials 8."""
    return h.product([h.loguniform("optim.lr", 5e-4, 8e-3), h.sweep("optim.warmup_steps", [25, 50, 100])])
