"""Number words, German to English: the embedded data set, for a first look.

python train.py
"""

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config() -> ConfigDict:
    """A small Transformer that reads numbers up to 999,999."""
    config = default_config()
    config.data.name = "numerals"
    config.data.max_length = 64
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 200
    config.model.update(
        d_model=128, num_heads=4, d_ff=256, num_encoder_layers=2, num_decoder_layers=2, dropout_rate=0.0
    )
    config.optim.update(schedule="cosine", lr=2e-3, warmup_steps=100, label_smoothing=0.0)
    config.training.update(num_steps=800, log_every=50, eval_every=400, checkpoint_every=400, metric="exact_match")
    return config
