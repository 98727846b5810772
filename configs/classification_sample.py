"""Headlines in four topics: the embedded data set of classification, for a first look.

Command: transformer-jax train --config classification_sample
Hardware and time: 2 cores of an AMD EPYC, 0.4 minutes (2026-11-23)
Score: accuracy 96.4 % on 1,000 validation headlines, 95.7 % on 1,000 of the test part, with words unseen in training
"""

from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config() -> ConfigDict:
    """A small encoder under a mean."""
    config = default_config()
    config.task = "classification"
    config.data.update(name="headlines", max_length=64, row_length=64)
    config.tokenizer.vocab_size = 1000
    config.model.update(d_model=64, num_heads=4, d_ff=128, num_encoder_layers=2, dropout_rate=0.1, norm_first=True)
    config.optim.update(schedule="cosine", lr=3e-3, warmup_steps=30, label_smoothing=0.0)
    config.classification.update(mask_rate=0.2, mask_loss=0.2)
    config.training.update(
        num_steps=400, log_every=50, eval_every=100, checkpoint_every=100, metric="accuracy", num_samples=5
    )
    return config


def get_hyper(h: Any) -> list[dict[str, Any]]:
    """A grid of learning rates and dropout rates."""
    return h.product([h.sweep("optim.lr", [1e-3, 3e-3, 1e-2]), h.sweep("model.dropout_rate", [0.0, 0.1, 0.3])])
