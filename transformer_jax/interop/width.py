"""The order of the model width: which of the D numbers of a token comes where.

Sums over the width do not care for its order, and neither does layer normalisation. So sinusoids that put all sines
before all cosines need no option of the model: the same permutation of every weight's width maps one layout to the
other, and the model computes the same function.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Int

_INPUT, _OUTPUT = -2, -1
_READS_WIDTH = ("query", "key", "value", "wide")
"""Linear layers whose input is D wide."""
_WRITES_WIDTH = ("out", "narrow", "norm")
"""Layers whose output is D wide: in a normalisation, that is all there is."""
_ROWS_OF_WIDTH = ("table", "learned")


def sines_first(d_model: int) -> Int[np.ndarray, " D"]:
    """Where each place of our width (sines and cosines in turn) lies in a width with all sines first."""
    return np.arange(d_model).reshape(2, -1).T.reshape(-1)


def permute_width(params: Mapping[str, Any], order: Int[np.ndarray, " D"]) -> dict[str, Any]:
    """The parameters of the same function with another order of the width.

    Args:
        params: of a `Seq2Seq` (numpy or JAX), as `models.split` gives them.
        order: for each place of the new width, its place in the old one; `numpy.argsort(order)` undoes it.
    """
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: _permuted(path, value, order) for path, value in flat.items()})


def _permuted(path: tuple[Any, ...], value: Any, order: Int[np.ndarray, " D"]) -> np.ndarray:
    array = np.asarray(value)
    layer, name = path[-2:] if len(path) > 1 else ("", path[-1])
    if name in _ROWS_OF_WIDTH or layer in _WRITES_WIDTH:
        return array.take(order, axis=_OUTPUT)
    if layer in _READS_WIDTH and name == "kernel":
        return array.take(order, axis=_INPUT)
    return array
