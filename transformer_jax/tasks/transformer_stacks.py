"""Both stacks without a vocabulary, as PyTorch's `nn.Transformer` is: vectors in, vectors out."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from transformer_jax.nn import ModelConfig, Transformer, abstract_params


@dataclass(frozen=True)
class TransformerStacksSettings:
    """What stacks know beside their sizes and parameters: nothing."""

    @property
    def title(self) -> str:
        """Of the model's card."""
        return "A Transformer without embeddings"

    @property
    def limits(self) -> str:
        """Of the model, for its card."""
        return (
            "It reads and writes vectors, so it has no vocabulary: call `model.model`, or learn embeddings and an "
            "output layer\nfor it by training with `--config.init_from`."
        )


class TransformerStacks:
    """A model folder that holds a `models.Transformer`. There is no text in it to work on, only modules."""

    settings_type = TransformerStacksSettings
    model_type = Transformer

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: None = None,
        settings: TransformerStacksSettings = TransformerStacksSettings(),
    ) -> None:
        """Put the parts together; `params` is the nested dict of `models.split`."""
        self.model_config = model_config
        self.params = params
        self.tokenizer = tokenizer
        self.settings = settings
        self.graphdef, _ = abstract_params(Transformer, model_config)

    @property
    def model(self) -> Transformer:
        """The module with its parameters."""
        model: Transformer = nnx.merge(self.graphdef, self.params)
        return model
