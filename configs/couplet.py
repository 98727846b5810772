"""Couplets (对联): wb14123's set; the figures are from 740,333 of its pairs.

Command: transformer-jax train --config couplet --config.data.manual_dir=FOLDER_WITH_THE_FILES
--config.training.max_minutes=88
(without `manual_dir` the set is downloaded: all 770,491 pairs)
Hardware and time: 2 cores of an AMD EPYC that trained another model too, 83.7 minutes to step 4,304 (2026-11-22);
that run read the same pairs, in the same order, from text files
Score: 1,380 unseen upper lines of the test set, beam 4: perplexity per character 53.2 (per token 37.3), sacreBLEU
(tok:char) 2.97, hard rules kept in 100 %, tones (weight 1) in 89.6 %
"""

from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config() -> ConfigDict:
    """A wide and shallow pre-norm Transformer over characters."""
    config = default_config()
    config.task = "couplet"
    config.data.update(name="couplet", validation_split="", validation_percent=0.3, max_length=40, row_length=64)
    config.tokenizer.update(kind="char", vocab_size=10_000)
    config.model.update(d_model=256, num_heads=4, d_ff=512, num_encoder_layers=2, num_decoder_layers=2)
    config.model.update(dropout_rate=0.05, norm_first=True)
    config.optim.update(schedule="cosine", lr=3e-3, warmup_steps=300, label_smoothing=0.0)
    config.training.update(num_steps=4800, log_every=100, eval_every=1200, checkpoint_every=500, ema_decay=0.998)
    config.training.metric = "loss"
    return config


def get_hyper(h: Any) -> list[dict[str, Any]]:
    """Learning rate and dropout, drawn: --trials 8 --prune median."""
    return h.product([h.loguniform("optim.lr", 1e-3, 6e-3), h.uniform("model.dropout_rate", 0.0, 0.2)])
