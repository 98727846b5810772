"""Every field and option has a range, checked when its dataclass is made."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    OptimConfig,
    TokenizerConfig,
    TrainingConfig,
    default_config,
    from_config_dict,
)
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig
from transformer_jax.nn.attention import dropout, scaled_dot_product_attention
from transformer_jax.nn.losses import chunked_cross_entropy
from transformer_jax.system import UserError
from transformer_jax.training.step import OPTIMIZERS

NAN = float("nan")


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (OptimConfig, {"label_smoothing": 1.5, "lr": -1.0, "clip_norm": NAN, "beta1": 1.0, "warmup_steps": -1}),
        (TrainingConfig, {"ema_decay": -1.0, "max_minutes": NAN, "patience": -1, "keep_checkpoints": 0}),
        (ModelConfig, {"d_model": 0, "dropout_rate": 1.0, "num_encoder_layers": -1, "attention_dropout_rate": NAN}),
        (DecodingConfig, {"conventions": "foo", "beam_size": 10_000_000, "alpha": -50.0}),
        (DataConfig, {"tokens_per_batch": 0, "max_length": 0, "validation_percent": 0.0, "batching": "none"}),
        (TokenizerConfig, {"vocab_size": 3, "kind": "syllable"}),
        (Config, {"seed": 2**63}),
        (SearchOptions, {"temperature": 1e-38, "alpha": -50.0, "beam_size": 10_000_000}),
        (SearchOptions, {"temperature": 1e39, "top_p": NAN, "seed": -1}),
    ],
)
def test_values_out_of_range_are_named(group, values):
    for name, value in values.items():
        with pytest.raises(UserError, match=rf"{name} is .*, but must be .*\.$"):
            group(**{name: value})


def test_fields_that_contradict_each_other():
    with pytest.raises(UserError, match="min_length is 9, but must be at most max_length, which is 2"):
        SearchOptions(min_length=9, max_length=2)


def test_a_config_names_the_field():
    config = default_config()
    config.decoding.conventions = "foo"
    with pytest.raises(UserError, match=r"^config\.decoding\.conventions is 'foo', but must be one of paper, "):
        from_config_dict(config)


def test_every_optimizer_can_be_chosen():
    assert [dataclasses.replace(OptimConfig(), name=name).name for name in OPTIMIZERS] == list(OPTIMIZERS)


@pytest.mark.parametrize("rate", [1.0, -0.5, NAN])
def test_dropout_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match="dropout rate is"):
        dropout(jnp.ones(4), rate, jax.random.key(0))


def test_a_mask_of_numbers_is_refused():
    x = jnp.ones((1, 2, 1, 2))
    with pytest.raises(Exception, match=r"(?s)mask"):
        scaled_dot_product_attention(x, x, x, jnp.zeros((1, 1, 2, 2)))


def test_a_label_of_weight_0_changes_nothing():
    x, table = jnp.ones((1, 2, 4)), jnp.ones((3, 4))

    def loss(x, label):
        return chunked_cross_entropy(x, table, jnp.array([[1, label]]), jnp.array([[1.0, 0.0]]))

    for label in (-100, 7):
        assert loss(x, label) == loss(x, 0)
        assert jnp.array_equal(jax.grad(loss)(x, label), jax.grad(loss)(x, 0))
