"""Promise: no warning, promotion or dtype of the caller's JAX changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.decoding.generator import Generator
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.nn import ModelConfig, Seq2Seq, split

CONFIG = ModelConfig(
    d_model=8,
    num_heads=2,
    d_ff=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    source_vocab_size=11,
    target_vocab_size=11,
)
GREEDY = SearchOptions(beam_size=1, max_extra_tokens=2)


def results():
    graphdef, params = split(Seq2Seq(CONFIG, rngs=nnx.Rngs(jax.random.key(0))))
    generator = Generator(graphdef)
    found = generator.generate(params, [[4, 5, 2]], GREEDY)
    return params, found, list(generator.stream(params, [4, 5, 2], GREEDY))


@pytest.fixture(scope="module")
def expected():
    return results()


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
    ],
    ids=["x64", "strict promotion", "no rank promotion"],
)
def test_settings_of_the_caller_change_nothing(expected, setting):
    with setting():
        params, found, streamed = results()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(np.testing.assert_array_equal, params, expected[0])
    assert (found, streamed) == expected[1:]
