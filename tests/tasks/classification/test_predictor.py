import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.decoding import scheduler
from transformer_jax.nn import Classifier, ModelConfig, split
from transformer_jax.system import UserError
from transformer_jax.tasks.classification.text_classifier import Predictor

CLASSES = 3
CONFIG = ModelConfig(d_model=16, num_heads=2, d_ff=16, num_encoder_layers=1, source_vocab_size=20, num_classes=CLASSES)


@pytest.fixture(scope="module")
def model():
    """Larger weights than those a training starts from make decided outputs, different for different inputs."""
    graphdef, params = split(Classifier(CONFIG, rngs=nnx.Rngs(0)))
    return graphdef, jax.tree.map(lambda leaf: 2 * leaf, params)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(4, 20, length).tolist() for length in rng.integers(1, 30, 80)]


@pytest.fixture(scope="module")
def expected(model, texts):
    """The softmax of a plain call, each text in a row of its own and all padded alike."""
    graphdef, params = model
    tokens = scheduler.padded(texts, len(texts), 48)
    logits = np.asarray(jax.jit(nnx.merge(graphdef, params))(tokens)[:, 0], np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def predict(model, texts, batch_size):
    return Predictor(model[0], num_classes=CLASSES, batch_size=batch_size).predict(model[1], texts)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_probabilities_do_not_depend_on_the_batch(model, texts, expected, batch_size):
    assert len({len(text) > 16 for text in texts}) == 2, "two padded lengths"
    found = predict(model, texts, batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(expected[:, 0]) > 0.5, "the model must not be trivial"


def test_probabilities_follow_their_texts(model, texts, expected):
    order = np.random.default_rng(1).permutation(len(texts))
    found = predict(model, [texts[i] for i in order], 64)
    np.testing.assert_allclose(found, expected[order], rtol=0, atol=1e-6)


def test_extra_padding_changes_nothing(model, texts, expected, monkeypatch):
    monkeypatch.setattr(scheduler, "LENGTHS", (40, 1024))
    np.testing.assert_allclose(predict(model, texts, 64), expected, rtol=0, atol=1e-6)


def test_no_texts(model):
    assert predict(model, [], 64).shape == (0, CLASSES)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_parameters_are_told(model, value):
    graphdef, params = model
    damaged = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
    with pytest.raises(UserError, match="probabilities are not numbers; its parameters must be damaged"):
        predict((graphdef, damaged), [[5]], 1)
