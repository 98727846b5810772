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
# # 3. The network and its masks
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/03_network.ipynb)
# · [中文](zh/03_network.ipynb)
#
# Figure 1 of the paper, taken apart: each sub-layer with the shapes that go through it, what residual connections and
# layer normalization do to gradients in a deep stack (section 3.1), and the masks that let sentences of different
# lengths share a batch, or a row. [Notebook 1](01_attention.ipynb) has attention, [notebook 2](02_positions.ipynb)
# positions and decoding.

# %%
# Installs the package where it is missing, as on Colab.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("transformer_jax") is None:
    source = "transformer-jax @ git+https://github.com/OWNER/transformer-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from transformer_jax import (
    DecoderLayer,
    Embedding,
    EncoderLayer,
    LayerNorm,
    ModelConfig,
    Seq2Seq,
    causal_mask,
    padding_mask,
    plots,
    segment_mask,
    sinusoidal_positions,
    split,
)
from transformer_jax.data.packing import collate_pairs, pack_rows, real_token_share

plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Every sub-layer and its shapes
#
# Two sentences (B = 2) of 7 source tokens (S) and 5 target tokens (T) in a model of width D = 64 with N = 4 heads and a
# feed-forward network of width F = 128. What passes from one sub-layer to the next always has the shape `[B, S, D]` or
# `[B, T, D]`, a vector for each token. Only inside a sub-layer do shapes change.

# %%
B, S, T, D, N, F, VOCABULARY = 2, 7, 5, 64, 4, 128, 100
rngs = nnx.Rngs(0)
embedding = Embedding(VOCABULARY, D, rngs=rngs)
encoder_layer = EncoderLayer(D, N, F, rngs=rngs)
decoder_layer = DecoderLayer(D, N, F, rngs=rngs)
source_tokens = jax.random.randint(jax.random.key(0), (B, S), 3, VOCABULARY)
target_tokens = jax.random.randint(jax.random.key(1), (B, T), 3, VOCABULARY)


def embedded(tokens):
    return embedding(tokens) + sinusoidal_positions(jnp.arange(tokens.shape[1]), D)


def feed_forward(layer, x):
    inside = jax.nn.relu(layer.feed_forward.wide(x))
    return inside, layer.feed_forward_residual(x, layer.feed_forward)


x = embedded(source_tokens)
weights = []
attended = encoder_layer.self_attention_residual(x, lambda y: encoder_layer.self_attention(y, y, record=weights))
inside, memory = feed_forward(encoder_layer, attended)
encoder = [
    ("embedding + positions", x, source_tokens),
    ("self-attention", attended, weights[0]),
    ("feed-forward", memory, inside),
]

y = embedded(target_tokens)
weights, mask = [], causal_mask(T)
looked_back = decoder_layer.self_attention_residual(
    y, lambda z: decoder_layer.self_attention(z, z, mask, record=weights)
)
looked_over = decoder_layer.cross_attention_residual(
    looked_back, lambda z: decoder_layer.cross_attention(z, memory, record=weights)
)
inside, hidden = feed_forward(decoder_layer, looked_over)
logits = hidden @ embedding.table[...].T  # the output layer has the weights of the embedding (section 3.4)
decoder = [
    ("embedding + positions", y, target_tokens),
    ("masked self-attention", looked_back, weights[0]),
    ("cross-attention", looked_over, weights[1]),
    ("feed-forward", hidden, inside),
    ("output layer", logits, None),
]

# The whole layers compute the same.
np.testing.assert_allclose(encoder_layer(x), memory, atol=1e-5)
np.testing.assert_allclose(decoder_layer(y, memory, mask), hidden, atol=1e-5)

# %%
INSIDE = {"embedding + positions": "tokens", "feed-forward": "inside"}
COLOURS = {"embedding": "#fde2c8", "self": "#cfe3f7", "masked": "#cfe3f7", "cross": "#d9ead3", "feed": "#fff2b3"}


def shape(array):
    return "[" + ", ".join(map(str, array.shape)) + "]"


figure, axis = plt.subplots(figsize=(8, 5.4))
for left, title, parts in ((0, "encoder, one layer", encoder), (6, "decoder, one layer", decoder)):
    for height, (name, output, within) in enumerate(parts):
        colour = next((value for key, value in COLOURS.items() if name.startswith(key)), "#e6e0f0")
        axis.add_patch(plt.Rectangle((left, 2 * height), 3.4, 1.1, facecolor=colour, edgecolor="gray"))
        within = "" if within is None else f"\n{INSIDE.get(name, 'weights')} {shape(within)}"
        axis.text(left + 1.7, 2 * height + 0.55, name + within, ha="center", va="center")
        axis.annotate("", (left + 1.7, 2 * height + 2), (left + 1.7, 2 * height + 1.1), arrowprops={"arrowstyle": "->"})
        axis.text(left + 1.8, 2 * height + 1.5, shape(output), va="center", color="#444444")
        if height and name != "output layer":  # the residual connection around it
            style = {"arrowstyle": "->", "connectionstyle": "bar,fraction=-0.25", "color": "#999999"}
            axis.annotate("", (left, 2 * height + 1.3), (left, 2 * height - 0.3), arrowprops=style)
    axis.text(left + 1.7, -0.5, title, ha="center", weight="bold")
axis.annotate("", (6, 4.55), (3.4, 5.5), arrowprops={"arrowstyle": "->", "color": "#6aa84f"})
axis.text(3.9, 5.45, "keys, values", color="#6aa84f")
axis.set(xlim=(-1.2, 9.8), ylim=(-0.8, 10.2))
axis.axis("off")
plt.show()

# %% [markdown]
# The gray lines are residual connections. The paper stacks six such layers on each side, and every decoder layer reads
# the output of the last encoder layer.
#
# ## Residual connections, normalized before or after
#
# The paper normalizes after the sum (**post-norm**), most later models before the sub-layer (**pre-norm**):
#
# $$\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x)) \qquad\text{or}\qquad x + \mathrm{Sublayer}(\mathrm{LayerNorm}(x))$$
#
# With pre-norm, a path without any normalization leads through all layers, and the gradient takes it back. With
# post-norm each layer rescales it. Here is the norm of the gradient by layer at initialization, in a model that is
# three times as deep as the paper's. (`scan_layers` stacks the parameters of all layers along an axis, which compiles
# faster.)

# %%
DEPTH = 18
source = jax.random.randint(jax.random.key(2), (8, 20), 3, VOCABULARY)
target, labels = jax.random.randint(jax.random.key(3), (2, 8, 20), 3, VOCABULARY)


def gradients_by_layer(norm_first):
    """Norm of the gradient of each layer's feed-forward weights W_1, of the encoder and the decoder."""
    config = ModelConfig(
        d_model=D,
        num_heads=N,
        d_ff=F,
        num_encoder_layers=DEPTH,
        num_decoder_layers=DEPTH,
        norm_first=norm_first,
        dropout_rate=0.0,
        source_vocab_size=VOCABULARY,
        target_vocab_size=VOCABULARY,
        scan_layers=True,
    )
    graphdef, params = split(Seq2Seq(config, rngs=nnx.Rngs(0)))

    def loss(params):  # cross-entropy
        log_probs = jax.nn.log_softmax(nnx.merge(graphdef, params)(source, target))
        return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1).mean()

    grads = jax.jit(jax.grad(loss))(params)
    kernels = [grads[side]["layers"]["stacked"]["feed_forward"]["wide"]["kernel"] for side in ("encoder", "decoder")]
    return [np.asarray(jnp.linalg.norm(kernel, axis=(1, 2))) for kernel in kernels]


gradients = {"pre-norm": gradients_by_layer(True), "post-norm": gradients_by_layer(False)}

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for name, sides in gradients.items():
    for axis, title, norms in zip(axes, ["encoder", "decoder"], sides, strict=True):
        axis.semilogy(range(1, DEPTH + 1), norms, "o-", markersize=3, label=name)
        axis.set(title=title, xlabel="layer, from input to output", xticks=range(1, DEPTH + 1, 3))
axes[0].set_ylabel("norm of the gradient")
axes[1].legend(frameon=False)
plt.show()

ratios = {name: float(decoder[-1] / decoder[0]) for name, (_, decoder) in gradients.items()}
print({name: f"{ratio:,.1f}" for name, ratio in ratios.items()}, "last decoder layer by first")
assert ratios["pre-norm"] < 5
assert ratios["post-norm"] > 20

# %% [markdown]
# In the post-norm decoder the gradient fades on its way back, as Liu et al. (2020) observed: with plain gradient
# descent the lower layers would stand still while the upper ones take long steps. Adam evens out the steps, but
# post-norm models also need a learning rate that warms up (section 5.3) to get over the first of them; Xiong et al.
# (2020) show that pre-norm can do without. Six layers, as in the paper, train well this way; very deep stacks are built
# pre-norm.
#
# ## Masks
#
# A mask is a boolean array, True where a query (row) may attend to a key (column). There are three reasons to have one:
# - **padding**: sentences of a batch have different lengths; the rest is filled with 0 and must not be read;
# - **causality**: the decoder must not see what it has to predict (notebook 2);
# - **segments**: several sentences share a row and must not see each other.
#
# They are combined with `&`.

# %%
tokens = jnp.array([[11, 12, 13, 14, 2, 0, 0]])
segments = jnp.array([[1, 1, 1, 2, 2, 0, 0]])
figure = plots.attention_masks(
    {
        "padding": jnp.broadcast_to(padding_mask(tokens), (1, 1, 7, 7))[0, 0],
        "causal": causal_mask(7)[0, 0],
        "segments": segment_mask(segments, segments)[0, 0],
        "segments & causal": (segment_mask(segments, segments) & causal_mask(7))[0, 0],
    },
    ["a", "b", "c", "d", "e", "pad", "pad"],
)
figure.set_dpi(80)
display(figure)

# %% [markdown]
# A correct mask makes padding invisible: the output for a sentence is the same with and without padding. Without the
# mask it is not.

# %%
short = jax.random.normal(jax.random.key(4), (1, 5, D))
padded = jnp.concatenate([short, jnp.ones((1, 2, D))], axis=1)
np.testing.assert_allclose(encoder_layer(padded, padding_mask(tokens))[:, :5], encoder_layer(short), atol=1e-5)
print("unmasked, the outputs differ by", float(jnp.abs(encoder_layer(padded)[:, :5] - encoder_layer(short)).max()))

# %% [markdown]
# ## Packing
#
# Padding is invisible but not free: the hardware multiplies it like the rest. If each sentence has a row of its own,
# rows are as long as the longest sentence. **Packing** puts several sentences into a row, with segments to keep them
# apart, and positions that begin at 0 in each.
#
# 60 pairs of sentences whose lengths are drawn at random, in rows of 32 tokens:

# %%
ROW = 32
random = np.random.default_rng(0)
source_lengths = np.clip(random.poisson(9, 60), 3, ROW)
lengths = np.stack([source_lengths, np.clip(source_lengths + random.integers(-2, 3, 60), 3, ROW)], axis=1)
pairs = [tuple(random.integers(3, VOCABULARY, n).astype(np.int32) for n in both) for both in lengths]

apart = collate_pairs([[pair] for pair in pairs], ROW, len(pairs))
rows = pack_rows(lengths, ROW)
packed = collate_pairs([[pairs[i] for i in row] for row in rows], ROW, len(rows))

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", width_ratios=[1, 1])
for axis, name, batch in ((axes[0], "a row each", apart), (axes[1], "packed", packed)):
    shown = np.where(batch.source_segments, batch.source_segments, np.nan)
    axis.imshow(shown, aspect="auto", cmap="tab10", vmin=1, vmax=10, interpolation="nearest")
    share = real_token_share(batch)
    axis.set(title=f"{name}: {len(batch.source)} rows, {share:.0%} filled", xlabel="place", ylabel="row")
    axis.set_ylim(len(pairs) - 0.5, -0.5)
plt.show()
assert real_token_share(packed) > 2 * real_token_share(apart)

# %% [markdown]
# The same tokens take a fraction of the rows. Nothing else changes: a sentence gets the same output, packed or alone.
# `Seq2Seq` makes the masks from the segments.

# %%
model = Seq2Seq(
    ModelConfig(
        d_model=D,
        num_heads=N,
        d_ff=F,
        num_encoder_layers=2,
        num_decoder_layers=2,
        source_vocab_size=VOCABULARY,
        target_vocab_size=VOCABULARY,
    ),
    rngs=nnx.Rngs(0),
)


def outputs(batch):
    return model(
        jnp.asarray(batch.source),
        jnp.asarray(batch.target),
        source_segments=jnp.asarray(batch.source_segments),
        target_segments=jnp.asarray(batch.target_segments),
        source_positions=jnp.asarray(batch.source_positions),
        target_positions=jnp.asarray(batch.target_positions),
    )  # [B, T, V]


packed_logits, apart_logits = outputs(packed), outputs(apart)
for r, row in enumerate(rows):
    for segment, pair in enumerate(row, start=1):
        alone = apart_logits[pair][: lengths[pair, 1]]
        np.testing.assert_allclose(packed_logits[r][packed.target_segments[r] == segment], alone, atol=1e-4)
print(f"All {len(pairs)} pairs have the same logits in {len(rows)} rows as in {len(pairs)}.")

# %% [markdown]
# ## Exercises
#
# Each has a hidden solution, and a cell that checks your answer: replace `solution_1` there with your own function.
#
# **Exercise 1.** Write layer normalization, `normalize(x)`, with NumPy: over the last axis, mean 0 and variance 1, with
# $\epsilon = 10^{-5}$ added to the variance.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 1
def solution_1(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)


# %% tags=["check"]
answer_1 = solution_1  # your function here

x = np.random.default_rng(1).normal(3, 5, (2, 4, D)).astype(np.float32)
np.testing.assert_allclose(answer_1(x), LayerNorm(D)(jnp.asarray(x)), atol=1e-4)
print("Exercise 1 is right.")

# %% [markdown]
# **Exercise 2.** Write `window(length, width)`, the causal mask `[length, length]` with which a position sees itself
# and the `width - 1` positions before it, as in models for long texts.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 2
def solution_2(length, width):
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < width)


# %% tags=["check"]
answer_2 = solution_2  # your function here

np.testing.assert_array_equal(answer_2(6, 6), causal_mask(6)[0, 0])
np.testing.assert_array_equal(answer_2(6, 1), np.eye(6, dtype=bool))
assert answer_2(9, 3).sum() == 9 + 8 + 7
print("Exercise 2 is right.")

# %% [markdown]
# **Exercise 3.** Through such a window of width `w`, a position sees `w` positions, itself included. How many can it
# see through a stack of `n` layers? Write `reach(n, w)`, for positions far enough from the start.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 3
def solution_3(layers, width):
    return layers * (width - 1) + 1  # each layer reaches width - 1 positions further back


# %% tags=["check"]
answer_3 = solution_3  # your function here

for layers, width in ((1, 4), (3, 2), (4, 3)):
    seen = np.linalg.matrix_power(solution_2(20, width).astype(int), layers)[-1]
    assert answer_3(layers, width) == np.count_nonzero(seen)
print("Exercise 3 is right.")

# %% [markdown]
# ## What to read next
#
# - Section 3.1 and figure 1 of [the paper](https://arxiv.org/abs/1706.03762).
# - [nn/layers.py](../transformer_jax/nn/layers.py), the sub-layers, and
#   [data/packing.py](../transformer_jax/data/packing.py), which sentences share a row.
# - Xiong et al., [*On layer normalization in the Transformer architecture*](https://arxiv.org/abs/2002.04745) (2020);
#   Liu et al., [*Understanding the difficulty of training Transformers*](https://arxiv.org/abs/2004.08249) (2020).
# - [docs/architecture.md](../docs/architecture.md): a training batch, from file to checkpoint.
