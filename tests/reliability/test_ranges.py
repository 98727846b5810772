"""Every field and option has a range, checked when its dataclass is made."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

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
from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.nn.attention import (
    attention_by_head,
    dot_product_attention,
    dropout,
    scaled_dot_product_attention,
)
from transformer_jax.nn.losses import chunked_cross_entropy, smoothed_cross_entropy
from transformer_jax.system import UserError
from transformer_jax.tasks.seq2seq_model import Seq2SeqSettings
from transformer_jax.training.step import OPTIMIZERS

NAN = float("nan")


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (OptimConfig, {"label_smoothing": 1.5, "lr": -1.0, "clip_norm": NAN, "beta1": 1.0, "warmup_steps": -1}),
        (OptimConfig, {"beta1": 1 - 2e-9, "beta2": 1 - 2**-53}),  # 1 in float32
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


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations are not checked, as outside these tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("attention", [scaled_dot_product_attention, dot_product_attention, attention_by_head])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_a_mask_of_numbers_is_refused(attention, dtype):
    x = jnp.ones((1, 2, 2, 2))
    with pytest.raises(TypeError, match=r"^mask is (float|int)32, but must be bool: True where"):
        attention(x, x, x, jnp.zeros((1, 1, 2, 2), dtype))


@pytest.mark.parametrize("attention", [scaled_dot_product_attention, dot_product_attention])
def test_gradients_of_a_query_without_keys_are_finite(attention):
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 4))
    mask = jnp.array([[[[True, False], [False, False]]]])

    def loss(query, key, value):
        return jnp.sum(jax.tree.leaves(attention(query, key, value, mask))[0] ** 2)

    for gradient in jax.grad(loss, argnums=(0, 1, 2))(x, x + 1.0, x - 1.0):
        assert jnp.isfinite(gradient).all()


def test_a_label_of_weight_0_changes_nothing():
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    table = jax.random.normal(jax.random.key(1), (11, 8))
    bias, labels = table[:, 0], jnp.array([[3, 1, 7, 2]])

    def loss(x, table, bias, labels, weights):
        return chunked_cross_entropy(x, table, labels, weights, 0.1, None, bias)

    loss_and_gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))
    without, (d_x, *d_others) = loss_and_gradients(x[:, :3], table, bias, labels[:, :3], jnp.ones((1, 3)))
    for label in (-100, 10**6, 0):
        found, (own_d_x, *own_d_others) = loss_and_gradients(
            x, table, bias, labels.at[0, 3].set(label), jnp.array([[1.0, 1.0, 1.0, 0.0]])
        )
        np.testing.assert_allclose(found, without, rtol=1e-6)
        np.testing.assert_allclose(own_d_x[:, :3], d_x, atol=1e-6)
        assert not own_d_x[:, 3].any()
        for own, other in zip(own_d_others, d_others, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "list"])
def test_labels_of_any_integer_dtype_give_the_same_loss_and_gradient(dtype):
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    table = jax.random.normal(jax.random.key(1), (400, 8))
    values, weights = [[3, 127, 0, 5]], jnp.array([[1.0, 2.0, 1.0, 0.5]])

    def losses(table, labels):
        chunked = chunked_cross_entropy(x, table, labels, weights, 0.1)
        return chunked, jnp.sum(weights * smoothed_cross_entropy(x @ table.T, labels, 0.1))

    labels = values if dtype == "list" else np.array(values, dtype)
    for chunked in (0, 1):
        found, expected = (
            jax.value_and_grad(lambda table, own: losses(table, own)[chunked])(table, own)  # noqa: B023
            for own in (labels, jnp.array(values))
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("label", "dtype"), [(2**32 + 1, "int64"), (2**32 - 1, "uint32"), (2**31, "uint32"), (255, "uint8"), (127, "int8")]
)
def test_a_label_beyond_the_vocabulary_is_the_last_one(label, dtype):
    logits = jnp.arange(12.0).reshape(2, 6)
    found, last = (smoothed_cross_entropy(logits, np.array([1, label], dtype)) for label in (label, 5))
    np.testing.assert_array_equal(found, last)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("make", [float, np.float32, np.array, jnp.float32])
def test_smoothing_out_of_range_is_refused_whatever_its_type(make):
    x, table, labels, weights = jnp.ones((1, 2, 4)), jnp.ones((3, 4)), jnp.array([[1, 2]]), jnp.ones((1, 2))
    with pytest.raises(UserError, match=r"^smoothing is 1\.5, but must be at least 0 and below 1"):
        smoothed_cross_entropy(x @ table.T, labels, make(1.5))
    with pytest.raises(UserError, match=r"^smoothing is 1\.5, but must be at least 0 and below 1"):
        chunked_cross_entropy(x, table, labels, weights, make(1.5))


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_become_numbers_of_python():
    config = ModelConfig(d_model=np.int64(8), num_heads=np.uint8(2), dropout_rate=np.float32(0.5))
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(
        ModelConfig(d_model=8, num_heads=2, dropout_rate=0.5)
    )
    assert type(Seq2SeqSettings(bad_words=((np.int64(3),),)).bad_words[0][0]) is int
    with pytest.raises(UserError, match="d_model is 0"):
        ModelConfig(d_model=np.int64(0))


def test_a_weight_that_is_not_finite_is_not_hidden():
    x, table = jnp.ones((1, 2, 4)), jnp.ones((3, 4))
    assert jnp.isnan(chunked_cross_entropy(x, table, jnp.array([[1, 2]]), jnp.array([[1.0, NAN]])))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_stream_ends_at_its_limit_and_refuses_numbers_that_are_none(temperature):
    config = ModelConfig(
        d_model=8,
        num_heads=2,
        d_ff=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        source_vocab_size=11,
        target_vocab_size=11,
        output_bias=True,
    )
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))
    generator = Generator(graphdef)
    options = SearchOptions(beam_size=1, max_extra_tokens=3, temperature=temperature)
    params["output_bias"] = jnp.zeros(11).at[2].set(-1e4)  # never ends by itself
    assert len(list(generator.stream(params, [4, 5, 2], options))) == 3 + 3 - 1
    damaged = jax.tree.map(lambda leaf: jnp.full_like(leaf, NAN), params)
    with pytest.raises(UserError, match="not numbers; its parameters must be damaged"):
        generator.generate(damaged, [[4, 5, 2]], options)
    with pytest.raises(UserError, match="not numbers; its parameters must be damaged"):
        list(generator.stream(damaged, [4, 5, 2], options))
