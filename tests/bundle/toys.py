"""A tiny translation model with random weights: quick to compile, and different outputs for different inputs."""

from pathlib import Path

import jax
from flax import nnx

from transformer_jax.bundle import save_bundle
from transformer_jax.data.tokenizers import TokenizerPair, train_pair
from transformer_jax.models import ModelConfig, Seq2Seq, split

SETTINGS = {
    "source_language": "de",
    "target_language": "en",
    "decoding": {"beam_size": 2, "max_extra_tokens": 3, "batch_size": 8},
}
TEXTS = ["abc", "", "cab ab", "Bad", " \t", "decade", "??"]
"""At most seven characters, so that all are searched in one padded length, which is compiled once."""


def tiny_tokenizer() -> TokenizerPair:
    return train_pair("char", ["abcde ABCDE"], [], vocab_size=50, joint=True)


def tiny_config(tokenizer: TokenizerPair) -> ModelConfig:
    return ModelConfig(
        d_model=8,
        num_heads=2,
        d_ff=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=tokenizer.source.vocab_size,
        target_vocab_size=tokenizer.target.vocab_size,
    )


def tiny_params(config: ModelConfig, seed: int = 0) -> dict:
    _, params = split(Seq2Seq(config, rngs=nnx.Rngs(seed)))
    # Larger weights than those a training starts from make decided outputs.
    return jax.tree.map(lambda x: 3 * x, params)


def write_bundle(path: Path, *, seed: int = 0, **settings: object) -> Path:
    tokenizer = tiny_tokenizer()
    config = tiny_config(tokenizer)
    save_bundle(
        path,
        task="translation",
        model_config=config,
        params=tiny_params(config, seed),
        tokenizer_files=tokenizer.files(),
        settings=SETTINGS | settings,
        scores={"bleu": 12.345678, "bleu_signature": "nrefs:1|case:mixed"},
        origin={"data": "random", "command": "pytest tests"},
    )
    return path
