"""A run of a few milliseconds a step: `python -m tests.reliability.tiny_run WORKDIR NUM_STEPS`."""

import sys

from configs import numerals
from transformer_jax.system.runtime import prepare
from transformer_jax.tasks.translation import sources as translation
from transformer_jax.training import run

_load_pairs = translation.load_pairs


def load_few(config, split):
    """Replaces `load_pairs`, for reading and learning from all of them takes seconds."""
    return _load_pairs(config, split)[: {"train": 60, "validation": 2}[split]]


def make_config(**training):
    """The config, with some fields of its group `training` changed."""
    config = numerals.get_config()
    config.model.update(d_model=8, num_heads=2, d_ff=8, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
    config.tokenizer.vocab_size = 60
    config.data.update(max_length=32, row_length=32, tokens_per_batch=256)
    config.decoding.update(beam_size=1, max_extra_tokens=1)
    config.training.update(
        num_steps=60, log_every=7, eval_every=60, checkpoint_every=1, keep_checkpoints=1, max_minutes=0
    )
    config.training.update(training)
    return config


if __name__ == "__main__":
    translation.load_pairs = load_few
    prepare()
    steps = int(sys.argv[2])
    run(make_config(num_steps=steps, eval_every=steps), sys.argv[1])
