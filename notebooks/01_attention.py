# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Multi-head attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/01_attention.ipynb)
# · [中文](zh/01_attention.ipynb)
#
# *Attention Is All You Need* ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)) builds a translation model
# without recurrence. This notebook is about the operation that takes its place (section 3.2): why it is worth having,
# what it computes, why the scores are divided by $\sqrt{d_k}$, and what several heads learn.
#
# You need some Python and matrix products; no JAX beyond what reads like NumPy.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("transformer_jax") is None:
    source = "transformer-jax @ git+https://github.com/OWNER/transformer-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import contextlib
import io
import math
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from num2words import num2words

import transformer_jax
from transformer_jax import (
    MultiHeadAttention,
    causal_mask,
    dot_product_attention,
    merge_heads,
    plots,
    scaled_dot_product_attention,
    split_heads,
)

plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Recurrence is a chain
#
# A recurrent network reads one token after another. Its state after token $t$ depends on its state after token $t-1$:
#
# $$h_t = \tanh(W h_{t-1} + x_t)$$
#
# $n$ tokens take $n$ steps that must wait for each other, however many processors there are. Attention relates every
# pair of tokens at once: $O(n^2 d)$ multiplications instead of $O(n d^2)$, but in $O(1)$ sequential operations (table 1
# of the paper).
#
# Both fit in a few lines. `causal_mask` lets a position see itself and earlier ones only, as recurrence does.

# %%
WIDTH = 512  # d_model of the paper's base model
W = jax.random.orthogonal(jax.random.key(0), WIDTH) * 0.9


def recurrence(x):  # [n, WIDTH] to [n, WIDTH]
    def step(h, x_t):
        h = jnp.tanh(h @ W + x_t)
        return h, h

    return jax.lax.scan(step, jnp.zeros(WIDTH), x)[1]


def attention(x):  # the same shapes
    one_head = x[None, :, None, :]  # [B, n, N, H], with one sentence and one head
    return dot_product_attention(one_head, one_head, one_head, causal_mask(len(x)))[0, :, 0]


# %% [markdown]
# Time against length, forward and backward. The first call compiles and is not counted.


# %%
def seconds(function, x, repeats=5):
    """The shortest of some runs."""
    function = jax.jit(function)
    jax.block_until_ready(function(x))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        times.append(time.perf_counter() - start)
    return min(times)


lengths = [16, 32, 64, 128, 256, 512, 1024]
inputs = {n: jax.random.normal(jax.random.key(n), (n, WIDTH)) for n in lengths}
layers = {"recurrence": recurrence, "attention": attention}
forward = {name: [seconds(layer, inputs[n]) for n in lengths] for name, layer in layers.items()}
backward = {
    name: [seconds(jax.grad(lambda x, layer=layer: layer(x).sum()), inputs[n]) for n in lengths]
    for name, layer in layers.items()
}

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for axis, title, times in zip(axes, ["forward", "forward and backward"], [forward, backward], strict=True):
    for name in layers:
        axis.loglog(lengths, [1000 * t for t in times[name]], "o-", label=name)
    axis.set(title=title, xlabel="tokens", xticks=lengths[::2], xticklabels=lengths[::2])
    axis.minorticks_off()
axes[0].set_ylabel("milliseconds")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# The time of recurrence grows in proportion to $n$, as each step waits for the one before. Attention takes a fraction
# of that while $n$ is well below $d$, as it is for sentences; beyond that, its $n^2$ shows and the lines cross. This
# is with two CPU cores, which can exploit little of its parallelism. On a GPU or TPU the lines cross at far longer
# texts, because a chain leaves thousands of units idle there.
#
# The chain also hurts learning. Information from the first token reaches the last through $n-1$ steps, each of which
# may shrink it, while attention connects the two directly (*maximum path length* in table 1). The gradient of the last
# output with respect to each input makes that visible:

# %%
x = inputs[64]  # scaled down for attention, since random tokens are similar only to themselves
reach = {
    name: jnp.linalg.norm(jax.grad(lambda x, layer=layer: layer(x)[-1].sum())(x), axis=1)
    for name, layer in {"recurrence": recurrence, "attention": lambda x: attention(0.2 * x)}.items()
}
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, norms in reach.items():
    axis.semilogy(range(63, -1, -1), norms, ".-", label=name)
axis.set(xlabel="how many tokens back", ylabel="norm of the gradient")
axis.legend(frameon=False)
plt.show()
assert reach["recurrence"][0] < 1e-6 * reach["recurrence"][-1]
assert reach["attention"][0] > 0.01 * jnp.median(reach["attention"])

# %% [markdown]
# ## Query, key, value
#
# Attention is a soft dictionary lookup. Each token offers a **key** (what it can be found by) and a **value** (what it
# says). A token that is looking for something has a **query**. The query is compared with all keys by dot products, the
# softmax turns the scores into weights that sum to 1, and the result is the weighted mean of the values:
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V \qquad (1)$$
#
# Numbers small enough to do by hand: one query, three keys, $d_k = 4$, so that $\sqrt{d_k} = 2$.

# %%
q = np.array([2, 0, 2, 0])
K = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])  # a row per token
V = np.array([[10, 0], [0, 10], [5, 5]])

scores = K @ q  # how well each key matches: 2, 0, 4
scaled = scores / math.sqrt(len(q))  # 1, 0, 2
powers = np.exp(scaled)  # e, 1, e²
weights = powers / powers.sum()
output = weights @ V

print("scores  ", scores)
print("scaled  ", scaled)
print("exp     ", powers.round(2))
print("weights ", weights.round(3), "sum to", weights.sum().round(3))
print("output  ", output.round(2))

# %% [markdown]
# The third key matches best and gets two thirds of the weight; the second one does not match at all and still gets 9 %:
# a softmax never gives a weight of exactly zero, so every key gets a gradient.
#
# ## Why divide by $\sqrt{d_k}$
#
# Let the components of query and key be independent, with mean 0 and variance 1. Their dot product is a sum of $d_k$
# terms of variance 1, so its variance is $d_k$ (footnote 4 of the paper), and scores grow like $\sqrt{d_k}$. Large
# scores saturate the softmax: one weight is nearly 1, the others nearly 0, and the gradient almost vanishes.

# %%
widths = np.array([4, 16, 64, 256, 1024])
KEYS = 16


def statistics(d_k, scale):
    """Standard deviation of scores, largest weight and size of the softmax's Jacobian, as means over 500 queries."""
    q, k = jax.random.normal(jax.random.key(d_k), (2, 500, KEYS, d_k))
    scores = (q[:, :1] * k).sum(-1) * scale  # [500, KEYS]
    weights = jax.nn.softmax(scores)
    slope = jax.vmap(jax.jacobian(jax.nn.softmax))(scores)
    return scores.std(), weights.max(-1).mean(), jnp.linalg.norm(slope, axis=(1, 2)).mean()


raw = np.array([statistics(int(d), 1.0) for d in widths])
divided = np.array([statistics(int(d), d**-0.5) for d in widths])

figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
titles = ["standard deviation of scores", f"largest of {KEYS} weights", "gradient of the softmax"]
for column, (axis, title) in enumerate(zip(axes, titles, strict=True)):
    axis.plot(widths, raw[:, column], "o-", label="$q \\cdot k$")
    axis.plot(widths, divided[:, column], "o-", label="$q \\cdot k / \\sqrt{d_k}$")
    axis.set(title=title, xlabel="$d_k$", xscale="log", xticks=widths, xticklabels=widths)
    axis.minorticks_off()
axes[0].set_yscale("log")
axes[1].set_ylim(0, 1)
axes[2].set_ylim(bottom=0)
axes[0].legend(frameon=False)
plt.show()

np.testing.assert_allclose(raw[:, 0], np.sqrt(widths), rtol=0.1)
np.testing.assert_allclose(divided[:, 0], 1, rtol=0.1)

# %% [markdown]
# ## Equation (1), line by line
#
# In practice there are many queries at once, several heads and several sentences. Arrays have the shape `[B, T, N, H]`:
# batch, tokens, heads, width of a head.

# %%
B, T, N, H = 2, 6, 4, 16
query, key, value = jax.random.normal(jax.random.key(1), (3, B, T, N, H))
mask = causal_mask(T)  # [1, 1, T, T], True where a query may attend

scores = jnp.einsum("BTNH,BSNH->BNTS", query, key)  # QKᵀ, for each sentence and head
scores = scores / jnp.sqrt(H)  # H is d_k
scores = jnp.where(mask, scores, -jnp.inf)  # exp(-inf) = 0: no weight
weights = jax.nn.softmax(scores, axis=-1)  # over the keys
output = jnp.einsum("BNTS,BSNH->BTNH", weights, value)
print(output.shape, weights.shape)

# %% [markdown]
# The package has the same equation twice: `scaled_dot_product_attention` returns the weights as well, to be looked at;
# `dot_product_attention` is what models use to train and translate. All three agree.

# %%
literal, literal_weights = scaled_dot_product_attention(query, key, value, mask)
fast = jax.jit(dot_product_attention)(query, key, value, mask)
np.testing.assert_allclose(literal, output, atol=1e-5)
np.testing.assert_allclose(literal_weights, weights, atol=1e-5)
np.testing.assert_allclose(fast, output, atol=1e-5)

# %% [markdown]
# ## Several heads
#
# One softmax gives one weighted mean: it cannot look at the verb and at the subject and keep them apart. Multi-head
# attention (section 3.2.2) runs $h$ attentions side by side, each on its own projections of width $d_k = d_{model}/h$:
#
# $$\mathrm{MultiHead}(Q,K,V) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O, \quad
# \mathrm{head}_i = \mathrm{Attention}(QW_i^Q, KW_i^K, VW_i^V)$$
#
# The heads share the width, so the number of parameters does not depend on $h$. All $W_i^Q$ stand side by side in one
# matrix: one product projects for all heads, and `split_heads` cuts the result.

# %%
layer = MultiHeadAttention(64, num_heads=4, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(2), (1, 5, 64))  # [B, T, D]

queries, keys, values = (split_heads(part(x), 4) for part in (layer.query, layer.key, layer.value))  # [B, T, N, H]
heads = [  # one head at a time
    scaled_dot_product_attention(queries[:, :, [i]], keys[:, :, [i]], values[:, :, [i]])[0] for i in range(4)
]
by_hand = layer.out(merge_heads(jnp.concatenate(heads, axis=2)))
np.testing.assert_allclose(layer(x, x), by_hand, atol=1e-5)

for heads in (1, 4, 16):
    parameters = jax.tree.leaves(nnx.state(MultiHeadAttention(64, num_heads=heads, rngs=nnx.Rngs(0))))
    print(f"{heads:2} heads: {sum(p.size for p in parameters):,} parameters")

# %% [markdown]
# ## What heads look at
#
# Two small models learn to translate German numbers below 1,000 into English, one with a single head and one with four;
# all else is equal. German says *drei-und-vierzig* (three and forty) where English says *forty-three*, so the decoder
# has to look ahead and back.
#
# `transformer_jax.run` takes a config and a folder and leaves a trained model there. Each takes some seconds.

# %%
folder = Path(tempfile.mkdtemp())
numbers = np.random.default_rng(0).permutation(1000)
lines = [f"{num2words(int(n), lang='de')}\t{num2words(int(n))}\n" for n in numbers]
(folder / "train.tsv").write_text("".join(lines[:950]), encoding="utf-8")
(folder / "validation.tsv").write_text("".join(lines[950:]), encoding="utf-8")


def trained(num_heads):
    config = transformer_jax.default_config()
    config.data.update(name="text", source_language="de", target_language="en", max_length=32, row_length=64)
    config.data.update(train_file=str(folder / "train.tsv"), validation_file=str(folder / "validation.tsv"))
    config.data.update(validation_split="validation", tokens_per_batch=1024)
    config.tokenizer.vocab_size = 100
    config.model.update(d_model=64, num_heads=num_heads, d_ff=128, num_encoder_layers=1, num_decoder_layers=1)
    config.model.dropout_rate = 0.0
    config.optim.update(schedule="cosine", lr=5e-3, warmup_steps=30, label_smoothing=0.0)
    config.training.update(num_steps=200, eval_every=200, checkpoint_every=200, metric="exact_match")
    config.decoding.beam_size = 1
    with contextlib.redirect_stdout(io.StringIO()):  # its log
        outcome = transformer_jax.run(config, folder / f"{num_heads}-heads")
    print(f"{num_heads} heads: {outcome.scores['exact_match']:.0%} of 50 unseen numbers right")
    return transformer_jax.load(outcome.model)


models = {num_heads: trained(num_heads) for num_heads in (1, 4)}

# %%
TEXT = "siebenhunderteinundzwanzig"  # 721


def look(num_heads):
    [[best]] = models[num_heads].search([TEXT], return_attention=True)
    print(best.text)
    source, target, weights = best.alignment  # weights: [layers, heads, target, source]
    return plots.attention_maps(weights, target, source), weights


figure, one = look(1)
figure.set_dpi(80)
display(figure)

# %%
figure, four = look(4)
figure.set_dpi(80)
display(figure)

# %% [markdown]
# A row is an output token, a column a piece of the source, a dark cell a large weight. The single head must make do
# with one map. The four have one each: some follow the words that are being translated, others look elsewhere,
# such as at the end of the sentence, which often serves as a place to rest when a head has nothing to find.
#
# How differently do heads look? For each output token, compare the weights of two heads: half the sum of absolute
# differences is 0 if the weights are equal and 1 if the heads share no piece.

# %%
maps = np.asarray(four[0])  # [heads, target, source]
distance = np.abs(maps[:, None] - maps[None]).sum(-1).mean(-1) / 2  # [heads, heads]
print(distance.round(2))
assert distance[~np.eye(4, dtype=bool)].min() > 0.05

# %% [markdown]
# ## Exercises
#
# Each has a hidden solution, and a cell that checks your answer: replace `solution_1` there with your own function.
#
# **Exercise 1.** Write softmax so that scores of 1,000 are no problem: `softmax(scores)` over the last axis, with
# NumPy. (Which constant may be subtracted from all scores?)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 1
def solution_1(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# %% tags=["check"]
answer_1 = solution_1  # your function here

np.testing.assert_allclose(answer_1(np.array([[0.0, 1.0, 2.0]])), jax.nn.softmax(jnp.array([[0.0, 1.0, 2.0]])), 1e-5)
np.testing.assert_allclose(answer_1(np.array([[1000.0, 1000.0], [0.0, 1000.0]])), [[0.5, 0.5], [0.0, 1.0]])
print("Exercise 1 is right.")

# %% [markdown]
# **Exercise 2.** Attention as a hard lookup: write `lookup(keys)`, which returns a query that gives nearly all the
# weight (more than 0.99) to the last of the keys. The keys, `[S, H]`, are orthogonal and of length 1.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 2
def solution_2(keys):
    return 100.0 * keys[-1]  # the same direction, and long enough to saturate the softmax


# %% tags=["check"]
answer_2 = solution_2  # your function here

keys = jax.random.orthogonal(jax.random.key(3), 16)[:10]
found = answer_2(keys)[None, None, None]
_, weights = scaled_dot_product_attention(found, keys[None, :, None], keys[None, :, None])
assert weights.shape == (1, 1, 1, 10)
assert weights[0, 0, 0, -1] > 0.99
print("Exercise 2 is right.")

# %% [markdown]
# **Exercise 3.** Count multiplications: from what length on does attention, with $2 n^2 d$, need more of them than
# recurrence, with $n d^2$? Write `crossover(d)`, which returns the smallest such integer $n$.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 3
def solution_3(d):
    return d // 2 + 1  # 2 n² d > n d² if and only if n > d / 2


# %% tags=["check"]
answer_3 = solution_3  # your function here

for d in (2, 7, 64, 512):
    n = answer_3(d)
    assert 2 * n**2 * d > n * d**2
    assert 2 * (n - 1) ** 2 * d <= (n - 1) * d**2
print("Exercise 3 is right.")

# %% [markdown]
# ## What to read next
#
# - [Notebook 2](02_positions.ipynb): what attention cannot see without positions, and how a translation is decoded.
# - Sections 3.2 and 4 of [the paper](https://arxiv.org/abs/1706.03762), and [docs/paper.md](../docs/paper.md), which
#   maps each equation to a function.
# - [nn/attention.py](../transformer_jax/nn/attention.py), all of attention in under 200 lines.
# - Bahdanau et al., [*Neural machine translation by jointly learning to align and
#   translate*](https://arxiv.org/abs/1409.0473) (2015), where attention over a source began.
