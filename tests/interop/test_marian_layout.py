"""The order of the width may change, what the model computes may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.interop.marian_layout import permute_width, sines_first
from transformer_jax.nn import ModelConfig, Seq2Seq, split
from transformer_jax.nn.attention import sinusoidal_positions

SMALL = {
    "d_model": 8,
    "num_heads": 2,
    "d_ff": 12,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "source_vocab_size": 11,
    "target_vocab_size": 11,
}


def test_sines_first_maps_one_layout_of_positions_to_the_other():
    places = jnp.arange(5)
    ours = np.asarray(sinusoidal_positions(places, 8))
    theirs = np.asarray(sinusoidal_positions(places, 8, layout="concatenated"))
    np.testing.assert_array_equal(ours, theirs[:, sines_first(8)])
    np.testing.assert_array_equal(ours[:, np.argsort(sines_first(8))], theirs)


def test_undone_by_the_inverse():
    _, params = split(Seq2Seq(ModelConfig(**SMALL), rngs=nnx.Rngs(0)))
    order = np.random.default_rng(0).permutation(8)
    there = permute_width(params, order)
    back = permute_width(there, np.argsort(order))
    same = jax.tree.map(np.array_equal, params, back)
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(params["target_embedding"]["table"], there["target_embedding"]["table"])


@pytest.mark.parametrize(
    "options",
    [
        {"norm_first": True, "tie_embeddings": "none", "output_bias": True},
        {"final_norm": True, "activation": "swish"},
    ],
)
def test_a_model_with_a_table_of_positions_computes_the_same_in_any_order(options):
    config = ModelConfig(**SMALL, positions="learned", max_positions=7, **options)
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: jnp.asarray(p + rng.normal(size=p.shape), jnp.float32), params)
    source, target = jnp.array([[3, 4, 5, 0], [6, 7, 8, 9]]), jnp.array([[1, 3, 4], [1, 5, 0]])

    def logits(parameters):
        return np.asarray(nnx.merge(graphdef, parameters)(source, target))

    permuted = jax.tree.map(jnp.asarray, permute_width(params, rng.permutation(8)))
    np.testing.assert_allclose(logits(permuted), logits(params), rtol=1e-4, atol=1e-4)
