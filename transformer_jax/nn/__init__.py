"""The models as Flax NNX modules, and how to use one functionally."""

from functools import cached_property
from typing import Any

import jax
from flax import nnx

from transformer_jax.nn.classifier import Classifier
from transformer_jax.nn.model_config import ModelConfig
from transformer_jax.nn.scanned import stack_layers, unstack_layers
from transformer_jax.nn.seq2seq import AttentionWeights, Cache, Memory, Seq2Seq
from transformer_jax.nn.stacks import Decoder, Encoder, Transformer

__all__ = [
    "AttentionWeights",
    "Cache",
    "Classifier",
    "Decoder",
    "Encoder",
    "Memory",
    "ModelConfig",
    "Seq2Seq",
    "Transformer",
    "abstract_params",
    "split",
    "stack_layers",
    "unstack_layers",
]


@jax.tree_util.register_static
class _GraphDef(nnx.GraphDef):
    """Hashed once: jitted functions hash their static arguments at each call, which for a model takes a millisecond."""

    def __init__(self, graphdef: nnx.GraphDef) -> None:
        super().__init__(graphdef.nodes, graphdef.attributes, graphdef.num_leaves)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return super().__hash__()


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A module as its static structure and its parameters, a nested dict of arrays."""
    graphdef, state = nnx.split(model)
    return _GraphDef(graphdef), nnx.to_pure_dict(state)


def abstract_params(
    model: type[Seq2Seq] | type[Classifier] | type[Transformer], config: ModelConfig
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """The graph of a model, and the shapes of its parameters in place of them; nothing is drawn.

    Raises:
        UserError: if two fields of `config` contradict each other.
    """
    return split(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))
