"""A classifier at work: texts of token ids in, probabilities of the classes out, in order."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from transformer_jax.data.by_length import batches_by_length, padded
from transformer_jax.devices import spread
from transformer_jax.errors import UserError
from transformer_jax.models import Classifier


class Predictor:
    """Asks a classifier. What comes out for a text does not depend on what else is asked."""

    def __init__(self, graphdef: nnx.GraphDef, *, num_classes: int, batch_size: int = 64) -> None:
        """Make a predictor of one model structure; parameters come with each call.

        Args:
            graphdef: of a `Classifier`.
            num_classes: of it.
            batch_size: texts at a time, at most.
        """
        self.graphdef = graphdef
        self.num_classes = num_classes
        self.batch_size = batch_size

    def predict(self, params: Any, texts: Sequence[Sequence[int]]) -> Float[np.ndarray, "n C"]:
        """The probability of each class for each text, given as token ids, at least one.

        Raises:
            UserError: if the model's outputs are not numbers.
        """
        probabilities = np.zeros((len(texts), self.num_classes), np.float32)

        def ask(params: Any, batch: tuple[int, int, list[int]]) -> tuple[list[int], Float[np.ndarray, "n C"]]:
            length, rows, chosen = batch
            tokens = padded([texts[i] for i in chosen], rows, length)
            return chosen, np.asarray(_probabilities(self.graphdef, params, tokens))[: len(chosen)]

        batches = list(batches_by_length([len(text) for text in texts], self.batch_size))
        for chosen, found in spread(ask, batches, params):
            probabilities[chosen] = found
        if not np.isfinite(probabilities).all():
            raise UserError("The model's probabilities are not numbers; its parameters must be damaged.")
        return probabilities


@partial(jax.jit, static_argnums=0)
def _probabilities(graphdef: nnx.GraphDef, params: Any, tokens: Int[Array, "B S"]) -> Float[Array, "B C"]:
    model: Classifier = nnx.merge(graphdef, params)
    return jax.nn.softmax(model(tokens)[:, 0])
