"""Cross-entropy with label smoothing (section 5.4)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def smoothed_cross_entropy(
    logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"], smoothing: float = 0.0
) -> Float[Array, "*batch"]:
    """Cross-entropy, in nats, of each label against (1 - smoothing) one-hot + smoothing / V.

    The smoothed distribution is never written out: what it adds is the mean of the logits.
    """
    logits = logits.astype(jnp.float32)
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    expected = (1.0 - smoothing) * at_label + smoothing * logits.mean(-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def chunked_cross_entropy(
    x: Float[Array, "M D"],
    table: Float[Array, "V D"],
    labels: Int[Array, "M"],
    weights: Float[Array, "M"],
    smoothing: float = 0.0,
    chunk: int = 256,
) -> Float[Array, ""]:
    """Weighted sum of `smoothed_cross_entropy(x @ table.T, labels, smoothing)`, never holding M x V logits.

    Loss and gradient come from one pass over chunks of tokens, since the gradient of a sum is known up to the factor that
    comes from outside; so each logit is computed once, used twice, and stays in the cache.

    Args:
        x: the decoder's output at M tokens.
        table: the output layer's rows, one a word.
        labels: the tokens to predict.
        weights: 0 for padding.
        smoothing: label smoothing.
        chunk: tokens at a time; M must be a multiple, or smaller.
    """
    return _loss_and_grads(x, table, labels, weights, smoothing, chunk)[0]


def _loss_and_grads(x, table, labels, weights, smoothing, chunk):
    chunk = min(chunk, x.shape[0])
    wide = table.astype(x.dtype)
    mean_row = wide.mean(0)

    def one_chunk(carry, inputs):
        loss, d_table = carry
        x, labels, weights = inputs
        logits = jnp.dot(x, wide.T, preferred_element_type=jnp.float32)
        top = logits.max(-1, keepdims=True)
        exponentials = jnp.exp(logits - top)
        total = exponentials.sum(-1, keepdims=True)
        rows = wide[labels]
        at_label = (x * rows).sum(-1)
        expected = (1.0 - smoothing) * at_label + smoothing * (x @ mean_row)
        loss += jnp.sum(weights * ((top + jnp.log(total))[:, 0] - expected))
        d_logits = (exponentials * (weights[:, None] / total)).astype(x.dtype)
        target = (1.0 - smoothing) * rows + smoothing * mean_row
        d_x = d_logits @ wide - weights[:, None] * target
        d_table += jnp.dot(d_logits.T, x, preferred_element_type=jnp.float32)
        return (loss, d_table), d_x

    split = lambda a: a.reshape(-1, chunk, *a.shape[1:])
    zeros = jnp.zeros(()), jnp.zeros(table.shape)
    (loss, d_table), d_x = jax.lax.scan(one_chunk, zeros, (split(x), split(labels), split(weights)))
    weighted = weights[:, None] * x
    d_table = d_table.at[labels].add(-(1.0 - smoothing) * weighted) - smoothing * weighted.sum(0) / table.shape[0]
    return loss, (d_x.reshape(x.shape), d_table.astype(table.dtype))


def _forward(x, table, labels, weights, smoothing, chunk):
    loss, grads = _loss_and_grads(x, table, labels, weights, smoothing, chunk)
    return loss, grads


def _backward(smoothing, chunk, grads, cotangent):
    d_x, d_table = grads
    return d_x * cotangent, d_table * cotangent, None, None


chunked_cross_entropy.defvjp(_forward, _backward)
