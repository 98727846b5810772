"""Both stacks without a vocabulary, as PyTorch's `nn.Transformer` is: vectors in, vectors out."""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from transformer_jax.nn import ModelConfig, Transformer, abstract_params


@dataclass(frozen=True)
class TransformerStacksSettings:
    """Settings of the stacks: none."""

    @property
    def title(self) -> str:
        """Title of the model card."""
        return "A Transformer without embeddings"

    @property
    def limits(self) -> str:
        """Limits of the model, for its card."""
        return (
            "It reads and writes vectors, so it has no vocabulary: call `model.model`, or learn embeddings and an "
            "output layer\nfor it by training with `--config.init_from`."
        )


class TransformerStacks:
    """A loaded `nn.Transformer`: modules only, without text."""

    settings_type = TransformerStacksSettings
    model_type = Transformer

    def __init__(
        self,
        model_config: ModelConfig,
        params: Any,
        tokenizer: None = None,
        settings: TransformerStacksSettings = TransformerStacksSettings(),
    ) -> None:
        """Put the parts together; `params` is the nested dict of `nn.split`."""
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
