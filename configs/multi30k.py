"""Multi30k: 29,000 image captions in English, German and French.

Command: transformer-jax train --config multi30k:de-en --config.data.manual_dir=FOLDER_WITH_THE_FILES
(without `manual_dir` the files are downloaded)
Hardware and time: 2 cores of an AMD EPYC that had other work too, 48.6 minutes de-en, 47.0 minutes en-de (2026-11-22)
Score: test_2016_flickr, beam 4, cased sacreBLEU (13a): 41.25 de-en, 39.01 en-de; lower-cased 41.50, 39.43
"""

from typing import Any

from ml_collections import ConfigDict

from transformer_jax.config import default_config


def get_config(languages: str = "de-en") -> ConfigDict:
    """A small pre-norm Transformer; `languages` is source and target, such as de-en or en-fr."""
    source, target = languages.split("-")
    config = default_config()
    config.data.update(name="multi30k", source_language=source, target_language=target, max_length=64, row_length=64)
    config.tokenizer.vocab_size = 6000
    config.model.update(d_model=192, num_heads=4, d_ff=512, num_encoder_layers=3, num_decoder_layers=3)
    config.model.update(dropout_rate=0.2, norm_first=True)
    config.optim.update(schedule="cosine", lr=2e-3, warmup_steps=300)
    config.training.update(num_steps=4500, eval_every=500, checkpoint_every=500, ema_decay=0.998)
    return config


def get_hyper(h: Any) -> list[dict[str, Any]]:
    """Learning rate and dropout, drawn: --trials 12 --prune median."""
    return h.product([h.loguniform("optim.lr", 5e-4, 5e-3), h.uniform("model.dropout_rate", 0.1, 0.4)])
