"""Cross-entropy with label smoothing (section 5.4), and the types of loss functions."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from transformer_jax.sharding import ROW_AXES, constrain, gathered, platform, row_parts
from transformer_jax.system import Fraction, UserError, check_value

Params = Any
"""A pytree of parameters; of our models a nested dict of arrays, as `nn.split` returns it."""

Batch = Any
"""A pytree of arrays with one row per packed row of examples, such as `Seq2SeqBatch`."""

Sums = dict[str, Float[Array, ""]]
"""Sums over a batch, never means: `loss`, the `weight` to divide it by, and others to log."""

LossFn = Callable[[Params, Batch, Key[Array, ""] | None], Sums]
"""(parameters, batch, dropout key) to sums; a key of None disables dropout. May run the model more than once."""

MOST_LOGITS = 2**27
"""Approximate maximum number of float32 logits in a device's memory at a time: half a gigabyte."""


def eval_step(params: Params, batch: Batch, *, loss_fn: LossFn) -> Sums:
    """The sums of a batch, without dropout."""
    return loss_fn(gathered(params), batch, None)


def smoothed_cross_entropy(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy, in nats, of each label against (1 - smoothing) one-hot + smoothing / V.

    The smoothed distribution is never materialized: it only adds the mean of the logits. Where a label is no token,
    such as -100, the loss is that of the nearest one: select others with `jnp.where` instead of multiplying by 0, which
    keeps NaN.

    Raises:
        UserError: if `smoothing` is out of range, or the labels are not integers.
    """
    labels = _checked(labels, smoothing)
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - _expected_logit(logits, labels, smoothing)


def _checked(labels: Int[Array, "*batch"], smoothing: float) -> Int[Array, "*batch"]:
    """The labels as int32, since other dtypes may not hold the size of a vocabulary."""
    if not isinstance(smoothing, jax.core.Tracer):
        check_value("smoothing", np.asarray(jax.device_get(smoothing)).tolist(), Fraction)
    xp: Any = jnp if isinstance(labels, jax.Array) else np  # JAX may cut 64 bits off without a word
    labels = xp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise UserError(f"labels are {labels.dtype}, but must be integers.")
    narrow, own = jnp.iinfo(jnp.int32), jnp.iinfo(labels.dtype)
    if own.max > narrow.max:
        labels = xp.clip(labels, max(own.min, narrow.min), narrow.max)
    return jnp.asarray(labels, jnp.int32)


def _expected_logit(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"], smoothing: float
) -> Float[Array, "*batch"]:
    """The mean of the logits under the smoothed distribution."""
    labels = jnp.clip(labels, 0, logits.shape[-1] - 1)
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (1.0 - smoothing) * at_label + smoothing * logits.mean(-1)


_Grads = tuple[Float[Array, "B T D"], Float[Array, "V D"], Float[Array, " V"] | None]
"""Gradients of the loss with respect to `x`, `table` and `bias`."""


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
    """Weighted sum of `smoothed_cross_entropy(x @ table.T + bias, labels, smoothing)` without B x T x V logits.

    Loss and gradient come from one pass over chunks of tokens, as the gradient of a sum is known up to the factor of
    the incoming gradient; each logit is computed once, and used while in cache.

    Args:
        x: decoder output.
        table: output layer, one row per vocabulary entry.
        labels: tokens to predict; any number, such as -100, where the weight is 0, else from 0 to V - 1.
        weights: weight of each token, 0 for padding; not differentiated. A negative one subtracts, and NaN makes the
            loss NaN.
        smoothing: label smoothing.
        chunk: approximate tokens per chunk on each device. A chunk takes the same columns of all of a device's rows,
            so that rows may be sharded; the number of columns divides T, so a prime T makes one chunk. Default: chosen
            by the device's platform.
        bias: bias of the output layer.

    A token of weight 0 adds nothing to the loss and to any gradient, whatever its label, as long as its `x` is finite.

    Raises:
        UserError: if `smoothing` is out of range, or the labels are not integers.
    """
    return _loss_and_grads(x, table, labels, weights, smoothing, chunk, bias)[0]


class _ChunkSums(NamedTuple):
    """Sums over chunks, for each of the P parts into which the rows of a batch are sharded."""

    loss: Float[Array, " P"]
    d_table: Float[Array, "P V D"]
    d_bias: Float[Array, "P V"] | None


def _loss_and_grads(
    x: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    smoothing: float,
    chunk: int | None,
    bias: Float[Array, " V"] | None,
) -> tuple[Float[Array, ""], _Grads]:
    """The loss and its gradients.

    A chunk is [P, N, ...]: N tokens from each of P parts, one per shard of the rows. Each part has its own sums, so
    that devices communicate only after the loop.
    """
    labels = _checked(labels, smoothing)
    batch, length, _ = x.shape
    vocab_size = table.shape[0]
    parts = row_parts(batch)
    tokens = _chunk(vocab_size) if chunk is None else chunk
    columns = next(n for n in range(1, length + 1) if length % n == 0 and (n * batch // parts >= tokens or n == length))
    kernel = table.astype(x.dtype)

    def one_chunk(
        sums: _ChunkSums, inputs: tuple[Float[Array, "P N D"], Int[Array, "P N"], Float[Array, "P N"]]
    ) -> tuple[_ChunkSums, Float[Array, "P N D"]]:
        x, labels, weights = inputs
        logits = jnp.einsum("PND,VD->PNV", x, kernel, preferred_element_type=jnp.float32)
        logits = logits if bias is None else logits + bias[None, None]
        # The softmax is written out, so that each exponential is computed once for both the loss and its gradient.
        highest = logits.max(-1)
        exponentials = jnp.exp(logits - highest[..., None])
        total = exponentials.sum(-1)
        losses = highest + jnp.log(total) - _expected_logit(logits, labels, smoothing)
        target = (1.0 - smoothing) * jax.nn.one_hot(labels, vocab_size, dtype=jnp.float32) + smoothing / vocab_size
        counts = weights != 0
        d_logits = (weights / total)[..., None] * exponentials - weights[..., None] * target
        d_logits = jnp.where(counts[..., None], d_logits, 0.0)
        d_bias = None if sums.d_bias is None else sums.d_bias + d_logits.sum(1)
        d_logits = d_logits.astype(x.dtype)
        d_table = jnp.einsum("PNV,PND->PVD", d_logits, x, preferred_element_type=jnp.float32)
        sums = _ChunkSums(
            sums.loss + jnp.sum(jnp.where(counts, weights * losses, 0.0), axis=1), sums.d_table + d_table, d_bias
        )
        return sums, d_logits @ kernel

    def chunks(a: Shaped[Array, "B T *width"]) -> Shaped[Array, "chunks P N *width"]:
        cut = a.reshape(parts, batch // parts, length // columns, columns, *a.shape[2:])
        return jnp.moveaxis(cut, 2, 0).reshape(length // columns, parts, -1, *a.shape[2:])

    def whole(a: Shaped[Array, "chunks P N *width"]) -> Shaped[Array, "B T *width"]:
        cut = a.reshape(length // columns, parts, batch // parts, columns, *a.shape[3:])
        return jnp.moveaxis(cut, 0, 2).reshape(batch, length, *a.shape[3:])

    zeros = _ChunkSums(
        constrain(jnp.zeros(parts, jnp.float32), ROW_AXES),
        constrain(jnp.zeros((parts, *table.shape), jnp.float32), ROW_AXES, "tensor", None),
        None if bias is None else constrain(jnp.zeros((parts, *bias.shape), jnp.float32), ROW_AXES, "tensor"),
    )
    sums, d_x = jax.lax.scan(one_chunk, zeros, (chunks(x), chunks(labels), chunks(weights)))
    d_bias = None if sums.d_bias is None else sums.d_bias.sum(0)
    return sums.loss.sum(), (whole(d_x), sums.d_table.sum(0).astype(table.dtype), d_bias)


def _chunk(vocab_size: int) -> int:
    """Tokens per chunk: few on a CPU, to keep the logits in cache; many elsewhere, as each chunk rereads the table."""
    return 512 if platform() == "cpu" else max(512, MOST_LOGITS // vocab_size)


def _backward(
    smoothing: float, chunk: int | None, grads: _Grads, cotangent: Float[Array, ""]
) -> tuple[Float[Array, "B T D"], Float[Array, "V D"], None, None, Float[Array, " V"] | None]:
    d_x, d_table, d_bias = grads
    d_bias = None if d_bias is None else d_bias * cotangent
    return (d_x * cotangent).astype(d_x.dtype), d_table * cotangent, None, None, d_bias


chunked_cross_entropy.defvjp(_loss_and_grads, _backward)
