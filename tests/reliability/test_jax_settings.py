"""Promise: no warning, promotion or dtype of the caller's JAX changes a result.

Warnings are errors in all tests.
"""

import dataclasses
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tasks.toys import TEXTS, write_bundle, write_classifier
from transformer_jax.config import Config, DataConfig, DecodingConfig, TokenizerConfig, TrainingConfig
from transformer_jax.decoding import beam_search, sample, stream
from transformer_jax.nn import Classifier, ModelConfig, Seq2Seq, Transformer, split
from transformer_jax.nn.attention import causal_mask, dot_product_attention, padding_mask, segment_mask
from transformer_jax.nn.classifier import pool
from transformer_jax.nn.losses import chunked_cross_entropy
from transformer_jax.nn.stacks import positions_of, segments_of
from transformer_jax.tasks.model_folder import load
from transformer_jax.training import run
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.step import noam_schedule

SIZES = ModelConfig(d_model=8, num_heads=2, d_ff=8, num_encoder_layers=1, num_decoder_layers=1)
SETTINGS = {
    "jax_enable_x64": True,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_transfer_guard": "disallow",
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_debug_nans": True,
    "jax_debug_infs": True,
}
OWN = (
    *("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion", "jax_debug_nans"),
    "jax_threefry_partitionable",
)
"""Settings under which layers and functions may be called one by one. Under a transfer guard they need `jax.jit`."""

OLD_JAX = jax.__version_info__ < (0, 8)
"""It compiles another program under `jax_debug_nans`, of other roundings."""


@contextmanager
def set_to(settings):
    """The settings of the process, which its threads see too."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def trained(folder, monkeypatch):
    """The last state of a short training with dropout, and what the model that it wrote answers."""
    states = []
    save = Checkpoints.save

    def keep(self, step, state, metadata):
        states.append(jax.device_get(state))
        return save(self, step, state, metadata)

    monkeypatch.setattr(Checkpoints, "save", keep)
    folder.mkdir()
    names = ("train_source", "train_target", "validation_source", "validation_target")
    for name in names:
        (folder / name).write_text("abc\ncab\nbad\ndec\n", encoding="utf-8")
    config = Config(
        data=DataConfig(
            name="text",
            max_length=8,
            row_length=8,
            tokens_per_batch=64,
            **{name: str(folder / name) for name in names},
        ),
        tokenizer=TokenizerConfig(kind="char"),
        model=SIZES,
        training=TrainingConfig(num_steps=2, ema_decay=0.9, metric="loss", num_samples=0),
        decoding=DecodingConfig(beam_size=1, max_extra_tokens=2),
    )
    outcome = run(config, folder / "run")
    return states[-1], load(outcome.model).params


def answers(translator, classifier):
    """What these models answer, in every way of asking."""
    texts = [text for text in TEXTS if text.strip()]
    return {
        "beam": translator.translate(texts),
        "greedy": translator.translate(texts, beam_size=1),
        "sample": translator.translate(texts, temperature=0.8, top_p=0.9, seed=3),
        "stream": list(translator.stream(texts[0])),
        "drawn stream": list(translator.stream(texts[0], temperature=0.8, seed=3)),
        "score": translator.score(texts[:2], texts[:2]),
        "classes": classifier.probabilities(texts),
        "parameters": (translator.params, classifier.params),
    }


def test_settings_of_the_caller_change_no_training_and_no_answer(tmp_path, monkeypatch):
    folders = write_bundle(tmp_path / "translator"), write_classifier(tmp_path / "classifier")

    def everything(name):
        return answers(*map(load, folders)) | {"training": trained(tmp_path / name, monkeypatch)}

    expected = everything("default")
    with set_to(SETTINGS):
        found = everything("set")
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name in expected:
        jax.tree.map(nearly if name == "training" and OLD_JAX else same, found[name], expected[name])
    kinds = {leaf.dtype for leaf in jax.tree.leaves((found["training"][0], found["parameters"]))}
    assert kinds == {np.dtype(np.float32), np.dtype(np.int32)}


def nearly(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert found.dtype == expected.dtype


def same(found, expected):
    np.testing.assert_array_equal(found, expected)
    assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)


KEY = jax.random.key(0)
IDS = jnp.array([[4, 5, 6, 2], [4, 2, 0, 0]], jnp.int32)
LABELS = jnp.array([[5, 6, 2, -100]] * 2, jnp.int32)
X = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(2, 4, 8)
TABLE = jnp.linspace(-1, 1, 88, dtype=jnp.float32).reshape(11, 8)
BIAS = TABLE[:, 0]
WORDS = dataclasses.replace(SIZES, source_vocab_size=11, target_vocab_size=11, output_bias=True)
CLASSES = dataclasses.replace(SIZES, source_vocab_size=11, num_classes=3, pooling="first")
SEARCH = {"batch_size": 1, "max_length": 4, "bos_id": 1, "eos_id": 2, "pad_id": 0}
ONE = {name: value for name, value in SEARCH.items() if name != "batch_size"}


def next_logits(tokens, cache):
    return jnp.broadcast_to(BIAS, (*tokens.shape, 11)), cache


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="threefry2x32"))


CALLS = {
    "stacks": lambda: Transformer(SIZES, rngs=rngs())(X, X, padding_mask(IDS), causal_mask(4), dropout_key=KEY),
    "encoder-decoder": lambda: Seq2Seq(WORDS, rngs=rngs())(IDS, IDS, dropout_key=KEY),
    "classifier": lambda: Classifier(CLASSES, rngs=rngs())(IDS),
    "parameters": lambda: split(Transformer(SIZES, rngs=rngs()))[1],
    "attention": lambda: dot_product_attention(X[:, :, None], X[:, :, None], X[:, :, None], segment_mask(IDS, IDS)),
    "pooling": lambda: pool(X, segments_of(IDS), 2, positions_of(IDS, None)),
    "loss": lambda: jax.value_and_grad(chunked_cross_entropy)(
        X, TABLE, LABELS, (LABELS > 0).astype(jnp.float32), 0.1, None, BIAS
    ),
    "schedule": lambda: [noam_schedule(8, 10)(count) for count in (3, jnp.int32(3))],
    "search": lambda: beam_search(
        next_logits, {}, beam_size=2, max_lengths=jnp.array([3]), prefix=jnp.array([[5]]), **SEARCH
    ),
    "sampling": lambda: sample(next_logits, {}, num_samples=2, keys=KEY[None], top_k=5, top_p=0.9, **SEARCH),
    "stream": lambda: list(stream(next_logits, {}, key=KEY, limit=3, prefix=jnp.array([5]), **ONE)),
}


@pytest.mark.parametrize("name", CALLS)
def test_settings_of_the_caller_change_no_layer_and_no_function(name):
    expected = CALLS[name]()
    with set_to({setting: SETTINGS[setting] for setting in OWN}):
        jax.tree.map(same, CALLS[name](), expected)
