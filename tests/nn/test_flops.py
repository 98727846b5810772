from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from transformer_jax.nn import Classifier, ModelConfig, Seq2Seq, split
from transformer_jax.nn.model_config import forward_flops, training_flops

CONFIG = ModelConfig(
    d_model=16,
    num_heads=2,
    d_ff=24,
    num_encoder_layers=1,
    num_decoder_layers=2,
    source_vocab_size=31,
    target_vocab_size=31,
)


def products(jaxpr):
    """Floating-point operations of every matrix product of a program, those of the programs within included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = 1
            for axis in contracted:
                inner *= left[axis]
            total += 2 * equation.outvars[0].aval.size * inner
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner)
    return total


@pytest.mark.parametrize(("rows", "source", "target"), [(1, 4, 4), (3, 5, 7)])
def test_the_formula_counts_the_products_of_the_model(rows, source, target):
    graphdef, params = split(Seq2Seq(CONFIG, rngs=nnx.Rngs(0)))
    sides = jnp.ones((rows, source), jnp.int32), jnp.ones((rows, target), jnp.int32)
    traced = jax.make_jaxpr(lambda p: nnx.merge(graphdef, p)(*sides))(params)
    assert products(traced.jaxpr) == forward_flops(CONFIG, rows, source, target) > 0
    assert training_flops(CONFIG, rows, source, target) == 3 * forward_flops(CONFIG, rows, source, target)


def test_of_a_classifier_only_the_head_is_left_out():
    config = replace(CONFIG, target_vocab_size=0, num_classes=3)
    graphdef, params = split(Classifier(config, rngs=nnx.Rngs(0)))
    traced = jax.make_jaxpr(lambda p: nnx.merge(graphdef, p)(jnp.ones((3, 5), jnp.int32)))(params)
    head = 3 * 2 * config.d_model * config.num_classes
    assert products(traced.jaxpr) - head == pytest.approx(forward_flops(config, 3, 5, 0), rel=0.02)
