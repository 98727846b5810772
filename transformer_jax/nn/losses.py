"""Cross-entropy with label smoothing (section 5.4)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from transformer_jax.sharding import ROW_AXES, constrain, gathered, platform, row_parts

Params = Any


Batch = Any


Sums = dict[str, Float[Array, ""]]
"""Sums over a batch, never means: `loss`, the `weight` it is to be divided by, and others to be logged."""


LossFn = Callable[[Params, Batch, Key[Array, ""] | None], Sums]
"""May run the model more than once; a key of None asks for no dropout."""


def eval_step(params: Params, batch: Batch, *, loss_fn: LossFn) -> Sums:
    """The sums of a batch, without dropout."""
    return loss_fn(gathered(params), batch, None)


MOST_LOGITS = 2**27
"""That a device holds at a time, about: half a gigabyte."""


def smoothed_cross_entropy(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy, in nats, of each label against (1 - smoothing) one-hot + smoothing / V.

    The smoothed distribution is never written out: what it adds is the mean of the logits.
    """
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - _expected_logit(logits, labels, smoothing)


def _expected_logit(logits: Array, labels: Array, smoothing: float) -> Array:
    """The mean of the logits under the smoothed distribution."""
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (1.0 - smoothing) * at_label + smoothing * logits.mean(-1)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    x: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    smoothing: float = 0.0,
    chunk: int | None = None,
    bias: Float[Array, " V"] | None = None,
) -> Float[Array, ""]:
    """Weighted sum of `smoothed_cross_entropy(x @ table.T + bias, labels, smoothing)`, never holding B x T x V logits.

    Loss and gradient come from one pass over chunks of tokens, since the gradient of a sum is known up to the factor
    that comes from outside; so each logit is computed once and used while it is in the cache.

    Args:
        x: the decoder's output.
        table: the output layer's rows, one a word.
        labels: the tokens to predict.
        weights: 0 for padding. No gradient goes to them.
        smoothing: label smoothing.
        chunk: tokens at a time on each device, about: some columns of all its rows, so that rows may be spread over
            devices. The number of columns divides T, so a prime T is one chunk. None: as suits the device.
        bias: of the output layer; None: it has none.
    """
    return _loss_and_grads(x, table, labels, weights, smoothing, chunk, bias)[0]


def _loss_and_grads(
    x: Array, table: Array, labels: Array, weights: Array, smoothing: float, chunk: int | None, bias: Array | None
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    batch, length, _ = x.shape
    # The rows of a device have sums of their own, which stay there until the loop is done.
    parts = row_parts(batch)
    tokens = _chunk(table.shape[0]) if chunk is None else chunk
    columns = next(n for n in range(1, length + 1) if length % n == 0 and (n * batch // parts >= tokens or n == length))
    wide = table.astype(x.dtype)

    def one_chunk(
        carry: tuple[Array, Array, Array | None], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array | None], Array]:
        loss, d_table, d_bias = carry
        x, labels, weights = inputs
        logits = jnp.einsum("ptd,vd->ptv", x, wide, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias
        # The softmax is not written out, so that each exponential is taken once, for the loss and for its gradient.
        highest = logits.max(-1)
        exponentials = jnp.exp(logits - highest[..., None])
        total = exponentials.sum(-1)
        losses = highest + jnp.log(total) - _expected_logit(logits, labels, smoothing)
        loss += jnp.sum(weights * losses, axis=1)
        is_label = labels[..., None] == jnp.arange(table.shape[0])
        target = (1.0 - smoothing) * is_label + smoothing / table.shape[0]
        d_logits = (weights / total)[..., None] * exponentials - weights[..., None] * target
        d_bias = None if d_bias is None else d_bias + d_logits.sum(1)
        d_logits = d_logits.astype(x.dtype)
        d_table += jnp.einsum("ptv,ptd->pvd", d_logits, x, preferred_element_type=jnp.float32)
        return (loss, d_table, d_bias), d_logits @ wide

    def chunks(a: Array) -> Array:
        cut = a.reshape(parts, batch // parts, length // columns, columns, *a.shape[2:])
        return jnp.moveaxis(cut, 2, 0).reshape(length // columns, parts, -1, *a.shape[2:])

    def whole(a: Array) -> Array:
        cut = a.reshape(length // columns, parts, batch // parts, columns, *a.shape[3:])
        return jnp.moveaxis(cut, 0, 2).reshape(batch, length, *a.shape[3:])

    zeros = (
        constrain(jnp.zeros(parts), ROW_AXES),
        constrain(jnp.zeros((parts, *table.shape)), ROW_AXES, "tensor", None),
        None if bias is None else constrain(jnp.zeros((parts, *bias.shape)), ROW_AXES, "tensor"),
    )
    (loss, d_table, d_bias), d_x = jax.lax.scan(one_chunk, zeros, (chunks(x), chunks(labels), chunks(weights)))
    d_bias = None if d_bias is None else d_bias.sum(0)
    return loss.sum(), (whole(d_x), d_table.sum(0).astype(table.dtype), d_bias)


def _chunk(vocab_size: int) -> int:
    """Tokens at a time: a CPU keeps their logits in its cache; others pay for each turn by reading the table again."""
    return 512 if platform() == "cpu" else max(512, MOST_LOGITS // vocab_size)


def _backward(
    smoothing: float, chunk: int | None, grads: tuple[Array, Array, Array | None], cotangent: Array
) -> tuple[Array, Array, None, None, Array | None]:
    d_x, d_table, d_bias = grads
    d_bias = None if d_bias is None else d_bias * cotangent
    return (d_x * cotangent).astype(d_x.dtype), d_table * cotangent, None, None, d_bias


chunked_cross_entropy.defvjp(_loss_and_grads, _backward)
