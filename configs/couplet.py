"""Couplets (对联): 740,333 pairs of wb14123's set.

Command: python train.py --config=configs/couplet.py --config.data.manual_dir=FOLDER_WITH_THE_FILES
(without `manual_dir` the files are downloaded)
"""

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
