"""Tiny models with random weights: quick to compile, and different outputs for different inputs."""

import dataclasses
from pathlib import Path

import jax
from flax import nnx

from transformer_jax.data.tokenizers import TokenizerPair, train_pair
from transformer_jax.nn import Classifier, ModelConfig, Seq2Seq, Transformer, split
from transformer_jax.tasks.model_folder import save

SETTINGS = {
    "source_language": "de",
    "target_language": "en",
    "decoding": {"beam_size": 2, "max_extra_tokens": 3, "batch_size": 8},
}
TEXTS = ["abc", "", "cab ab", "Bad", " \t", "decade", "??"]
"""At most seven characters, so that all are searched in one padded length, which is compiled once."""
CLASSES = ("bee", "cat", "dog")
CHARACTERS = "天地花草春秋风雨山水日月云霞江海松竹梅兰东西南北一二三四五六七八九十大小长短高低来去有无前后红绿青白"
MARKS = "，、；"


def tiny_tokenizer(characters: str = "abcde ABCDE") -> TokenizerPair:
    return train_pair("char", [characters], [], vocab_size=200, joint=True)


def tiny_config(tokenizer: TokenizerPair, *, num_classes: int = 0) -> ModelConfig:
    return ModelConfig(
        d_model=8,
        num_heads=2,
        d_ff=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=tokenizer.source.vocab_size,
        target_vocab_size=0 if num_classes else tokenizer.target.vocab_size,
        num_classes=num_classes,
    )


def tiny_params(config: ModelConfig, seed: int = 0) -> dict:
    _, params = split((Classifier if config.num_classes else Seq2Seq)(config, rngs=nnx.Rngs(seed)))
    # Larger weights than those a training starts from make decided outputs.
    return jax.tree.map(lambda x: 3 * x, params)


def write_bundle(path: Path, *, seed: int = 0, **settings: object) -> Path:
    """A translator."""
    return _write(path, "translation", tiny_tokenizer(), SETTINGS | settings, seed=seed)


def write_classifier(path: Path, **settings: object) -> Path:
    return _write(path, "classification", tiny_tokenizer(), {"classes": CLASSES} | settings)


def write_couplet_writer(path: Path, **settings: object) -> Path:
    decoding = {"beam_size": 2, "batch_size": 64}
    return _write(path, "couplet", tiny_tokenizer(CHARACTERS + MARKS), {"decoding": decoding} | settings)


def write_stacks(path: Path) -> Path:
    """Stacks without a vocabulary, as those of PyTorch."""
    model_config = dataclasses.replace(
        tiny_config(tiny_tokenizer()), source_vocab_size=0, target_vocab_size=0, final_norm=True, activation="gelu"
    )
    _, params = split(Transformer(model_config, rngs=nnx.Rngs(5)))
    save(
        path,
        task="transformer",
        model_config=model_config,
        params=params,
        tokenizer_files={},
        settings={},
        scores={},
    )
    return path


def _write(path: Path, task: str, tokenizer: TokenizerPair, settings: dict, *, seed: int = 0) -> Path:
    config = tiny_config(tokenizer, num_classes=len(settings.get("classes", ())))
    save(
        path,
        task=task,
        model_config=config,
        params=tiny_params(config, seed),
        tokenizer_files=tokenizer.files(),
        settings=settings,
        scores={"bleu": 12.345678, "bleu_signature": "nrefs:1|case:mixed"},
        origin={"data": "random", "command": "pytest tests"},
    )
    return path
