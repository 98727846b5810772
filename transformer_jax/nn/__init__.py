"""The models as Flax NNX modules, and their functional form: a static structure and a nested dict of parameters."""

from flax import nnx

from transformer_jax.nn.classifier import Classifier
from transformer_jax.nn.losses import Params
from transformer_jax.nn.model_config import ModelConfig
from transformer_jax.nn.seq2seq import AttentionWeights, Cache, Memory, Seq2Seq
from transformer_jax.nn.stacks import Decoder, Encoder, Transformer, split, stack_layers, unstack_layers

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


def abstract_params(
    model: type[Seq2Seq] | type[Classifier] | type[Transformer], config: ModelConfig
) -> tuple[nnx.GraphDef, Params]:
    """`split` of a model with `jax.ShapeDtypeStruct`s in place of its parameters, without initializing any.

    Raises:
        UserError: if a field of `config` is invalid.
    """
    return split(nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0))))
