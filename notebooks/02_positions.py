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
# # 2. Positions, and encoding versus decoding
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/02_positions.ipynb)
# · [中文](zh/02_positions.ipynb)
#
# Attention treats a sentence as a set. This notebook shows what that means and how sinusoids restore the order
# (section 3.5), then how the decoder differs from the encoder: in training it reads the shifted target all at once
# (section 3.1), in translation it writes one token at a time, with a cache. [Notebook 1](01_attention.ipynb) has
# attention itself.

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
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from num2words import num2words

import transformer_jax
from transformer_jax import MultiHeadAttention, plots, sinusoidal_positions, split

plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## What attention cannot see
#
# A permutation test: shuffle the tokens, apply self-attention, and compare with the output of the tokens in order,
# shuffled afterwards. They are equal, $f(Px) = P f(x)$, whatever the weights of the layer. To attention, *dog bites
# man* and *man bites dog* are the same three vectors.

# %%
D, T = 64, 8
layer = MultiHeadAttention(D, num_heads=4, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (1, T, D))
order = jax.random.permutation(jax.random.key(1), T)

shuffled = x[:, order]
np.testing.assert_allclose(layer(shuffled, shuffled), layer(x, x)[:, order], atol=1e-5)

# %% [markdown]
# Add to each vector something that depends on its position alone, and the order counts:

# %%
positions = sinusoidal_positions(jnp.arange(T), D)  # [T, D]
in_order = layer(x + positions, x + positions)[:, order]
out_of_order = layer(shuffled + positions, shuffled + positions)
difference = float(jnp.abs(out_of_order - in_order).mean() / jnp.abs(in_order).mean())
print(f"The outputs now differ by {difference:.0%} of their size.")
assert difference > 0.1

# %% [markdown]
# ## Sinusoids
#
# Position $pos$ gets sines and cosines of wavelengths from $2\pi$ to almost $10000 \cdot 2\pi$:
#
# $$PE_{(pos, 2i)} = \sin\frac{pos}{10000^{2i/d_{model}}}, \qquad
# PE_{(pos, 2i+1)} = \cos\frac{pos}{10000^{2i/d_{model}}}$$
#
# On the left each row is a position: fast waves in the first columns, slow ones in the last, like the low and
# high digits of a number. On the right, the dot products of all pairs.

# %%
figure = plots.positional_encodings(sinusoidal_positions(jnp.arange(64), 128))
figure.set_dpi(70)
display(figure)

# %% [markdown]
# The stripes along the diagonal say that the dot product depends on the distance of two positions only. This follows
# from $\sin a \sin b + \cos a \cos b = \cos(a - b)$, summed over the frequencies $\omega_i$:
#
# $$PE_p \cdot PE_{p+k} = \sum_i \cos(\omega_i k)$$
#
# So the curves from three positions coincide:

# %%
encoding = np.asarray(sinusoidal_positions(jnp.arange(200), 128))
omega = 10000.0 ** (-np.arange(0, 128, 2) / 128)
offsets = np.arange(100)
formula = np.cos(np.outer(offsets, omega)).sum(axis=1)

figure, axis = plt.subplots(figsize=(5, 2.4), layout="constrained")
for start, style in ((0, "-"), (30, "--"), (90, ":")):
    products = encoding[start : start + 100] @ encoding[start]
    np.testing.assert_allclose(products, formula, atol=1e-2)
    axis.plot(offsets, products, style, linewidth=2, label=f"from position {start}")
axis.set(xlabel="distance", ylabel="dot product")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# This is why the authors chose sinusoids: for a fixed $k$, $PE_{pos+k}$ is a linear function of $PE_{pos}$, the same
# for all positions. Each pair of sine and cosine is rotated by the angle $\omega_i k$, so a head can learn a projection
# that looks "three tokens back".

# %%
k = 3
rotation = np.zeros((128, 128))
for i, angle in enumerate(omega * k):
    pair = slice(2 * i, 2 * i + 2)
    rotation[pair, pair] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
np.testing.assert_allclose(encoding[:-k] @ rotation.T, encoding[k:], atol=1e-4)

# %% [markdown]
# ## A model to look into
#
# As in notebook 1, a small model learns German numbers below 1,000 in some seconds.

# %%
folder = Path(tempfile.mkdtemp())
numbers = np.random.default_rng(0).permutation(1000)
lines = [f"{num2words(int(n), lang='de')}\t{num2words(int(n))}\n" for n in numbers]
(folder / "train.tsv").write_text("".join(lines[:950]), encoding="utf-8")
(folder / "validation.tsv").write_text("".join(lines[950:]), encoding="utf-8")

config = transformer_jax.default_config()
config.data.update(name="text", source_language="de", target_language="en", max_length=32, row_length=64)
config.data.update(train_file=str(folder / "train.tsv"), validation_file=str(folder / "validation.tsv"))
config.data.update(validation_split="validation", tokens_per_batch=1024)
config.tokenizer.vocab_size = 100
config.model.update(d_model=64, num_heads=4, d_ff=128, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.0)
config.optim.update(schedule="cosine", lr=5e-3, warmup_steps=30, label_smoothing=0.0)
config.training.update(num_steps=200, eval_every=200, checkpoint_every=200, metric="exact_match")
config.decoding.beam_size = 1
with contextlib.redirect_stdout(io.StringIO()):  # its log
    outcome = transformer_jax.run(config, folder / "run")
translator = transformer_jax.load(outcome.model)
model = translator.model  # the network, a Seq2Seq
print(f"{outcome.scores['exact_match']:.0%} of 50 unseen numbers are right.")

# %% [markdown]
# ## Shifted targets and teacher forcing
#
# The decoder predicts each token of the target from those before it. In training the whole target is known, so all
# predictions are made in one pass: the decoder reads the target **shifted right** by one place, beginning with a start
# token, and its label at each place is the token that comes next. Feeding it the correct tokens, whatever it would
# have written itself, is called **teacher forcing**.

# %%
TEXT, REFERENCE = "siebenhunderteinundzwanzig", "seven hundred and twenty-one"
source_tokens, target_tokens = translator.tokenizer.source, translator.tokenizer.target
bos, eos = target_tokens.special_tokens.bos, target_tokens.special_tokens.eos

source = [*source_tokens.encode(TEXT), eos]
labels = [*target_tokens.encode(REFERENCE), eos]
shifted = [bos, *labels[:-1]]

logits = model(jnp.array([source]), jnp.array([shifted]))[0]  # [T, V], one pass
log_probs = jax.nn.log_softmax(logits)

print(f"{'reads':>10}  {'label':10}  {'best guess':10}  probability of the label")
for place, (read, label) in enumerate(zip(shifted, labels, strict=True)):
    guess = int(log_probs[place].argmax())
    pieces = [target_tokens.piece(token) for token in (read, label, guess)]
    print(f"{pieces[0]:>10}  {pieces[1]:10}  {pieces[2]:10}  {float(jnp.exp(log_probs[place, label])):.3f}")

# %% [markdown]
# The sum of these log-probabilities is that of the sentence. The loss is its negative, divided by the number of tokens.
# `Translator.score` computes the same:

# %%
total = float(sum(log_probs[place, label] for place, label in enumerate(labels)))
np.testing.assert_allclose(translator.score([TEXT], [REFERENCE])[0].log_prob, total, rtol=1e-3, atol=1e-4)
print(f"log-probability {total:.4f} nats, loss {-total / len(labels):.4f} nats per token")

# %% [markdown]
# One pass for all places is only honest if no place sees its own label. That is what the causal mask is for (section
# 3.2.3). A test: replace one input token with another and see which outputs change. In the encoder each output depends
# on all tokens, in the decoder only on its own token and earlier ones.


# %%
def influence(function, tokens):
    """How much the output at each place changes with each token: [token, place]."""
    before = function(jnp.array([tokens]))[0]
    changes = []
    for place, token in enumerate(tokens):
        other = [*tokens[:place], token + 1 if token < 50 else token - 1, *tokens[place + 1 :]]
        changes.append(jnp.abs(function(jnp.array([other]))[0] - before).max(axis=-1))
    return np.array(changes)


graphdef, params = split(model)  # used functionally, as JAX's transformations want it


@jax.jit
def encode(tokens):
    return nnx.merge(graphdef, params).encode(tokens, jnp.ones_like(tokens))


@jax.jit
def decode(tokens):
    return nnx.merge(graphdef, params)(jnp.array([source]), tokens)


encoder, decoder = influence(encode, source), influence(decode, shifted)

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
for axis, title, changes, tokens in (
    (axes[0], "encoder", encoder, [source_tokens.piece(token) for token in source]),
    (axes[1], "decoder", decoder, [target_tokens.piece(token) for token in shifted]),
):
    axis.imshow(changes.T > 1e-4, cmap="Blues", vmin=0, vmax=1.5)
    axis.set(title=title, xlabel="changed token", ylabel="place of the output")
    axis.set_xticks(range(len(tokens)), tokens, rotation=90)
    axis.set_yticks(range(len(tokens)), tokens)
plt.show()

assert (encoder > 1e-4).all()
assert (np.triu(np.ones_like(decoder)) * decoder == decoder).all()  # nothing before the changed token

# %% [markdown]
# In translation there is no teacher: the decoder reads what it wrote. If it errs, it has to go on from there, which it
# never practised (*exposure bias*). Forced to begin with a wrong word, does it recover?

# %%
for prefix in ("seven", "eight", "seven hundred and thirty"):
    print(f"{prefix + ' ...':28}", translator.translate([TEXT], prefix=prefix)[0])

# %% [markdown]
# ## Step by step, with a cache
#
# Translation is a loop: encode the source once, then ask the decoder for one token after another, until it writes the
# end of the sentence. Keys and values of earlier tokens do not change, since these never see later ones. So they are
# kept in a **cache**, and each step computes those of the newest token only.
#
# `remember` encodes the source and projects keys and values for cross-attention; `step` takes the newest token.

# %%
LONGEST = 12


@jax.jit
def step(params, token, cache, memory):
    return nnx.merge(graphdef, params).step(token, cache, memory)


memory = model.remember(jnp.array([source]))
cache = model.empty_cache(batch_size=1, beam_size=1, max_length=LONGEST)
token, written, step_logits, filled = bos, [], [], []
while token != eos and len(written) < LONGEST:
    logits, cache = step(params, jnp.array([[token]]), cache, memory)  # [B, K, V], one sentence, one hypothesis
    token = int(logits[0, 0].argmax())  # greedy
    written.append(token)
    step_logits.append(logits[0, 0])
    keys, values = cache.keys_values[0]  # [B, N, H, places] and [B, N, places, H]
    filled.append(jnp.linalg.norm(keys[0], axis=1))  # [N, places]
    print(f"step {len(written)}: {' '.join(map(target_tokens.piece, written))}")

text = target_tokens.decode(written)
print(text)
assert text == translator.translate([TEXT], beam_size=1)[0]

# %% [markdown]
# The cache after each step, as the norm of the keys in each of the four heads: a column is written once and then only
# read.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True, layout="constrained")
brightest = float(jnp.stack(filled).max())
for head, axis in enumerate(axes):
    picture = np.array([norms[head] for norms in filled])
    image = axis.imshow(np.where(picture > 0, picture, np.nan), cmap="viridis", vmin=0, vmax=brightest)
    axis.set(title=f"head {head}", xlabel="place in the cache")
    axis.set_xticks(range(0, LONGEST, 2))
axes[0].set(ylabel="after step", yticks=range(len(written)), yticklabels=range(1, len(written) + 1))
figure.colorbar(image, ax=axes, label="norm of the key", shrink=0.6)
plt.show()

for number, norms in enumerate(filled, start=1):
    assert (norms[:, :number] > 0).all()
    assert (norms[:, number:] == 0).all()

# %% [markdown]
# The logits are those of the pass over the whole output: the cache saves work and changes nothing.

# %%
whole = model(jnp.array([source]), jnp.array([[bos, *written[:-1]]]))[0]
np.testing.assert_allclose(jnp.stack(step_logits), whole, atol=1e-3)

# %% [markdown]
# ## Exercises
#
# Each has a hidden solution, and a cell that checks your answer: replace `solution_1` there with your own function.
#
# **Exercise 1.** Write `shift(labels, bos)`, the decoder's input for a batch of labels `[B, T]` that are 0 where
# padded. The padding of the input has to be where that of the labels is.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 1
def solution_1(labels, bos):
    shifted = np.roll(labels, 1, axis=1)
    shifted[:, 0] = bos
    return np.where(labels == 0, 0, shifted)


# %% tags=["check"]
answer_1 = solution_1  # your function here

found = answer_1(np.array([[7, 8, 9, 2], [5, 2, 0, 0]]), 1)
np.testing.assert_array_equal(found, [[1, 7, 8, 9], [1, 5, 0, 0]])
print("Exercise 1 is right.")

# %% [markdown]
# **Exercise 2.** Without a cache, step $t$ sends all $t$ tokens through the decoder. Write `saved(T)`: how many tokens
# fewer go through the decoder for an output of $T$ tokens if there is a cache.


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 2
def solution_2(length):
    return length * (length + 1) // 2 - length  # 1 + 2 + ... + T instead of T


# %% tags=["check"]
answer_2 = solution_2  # your function here

assert [answer_2(length) for length in (1, 2, 3, 30)] == [0, 1, 3, 435]
print("Exercise 2 is right.")

# %% [markdown]
# **Exercise 3.** Write `position_of(vector)`, which finds the position from 0 to 199 whose sinusoid, of width 128, is
# in a vector with some noise. (With which encoding is its dot product largest?)


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title Solution 3
def solution_3(vector):
    return int((sinusoidal_positions(jnp.arange(200), 128) @ vector).argmax())  # all have the same length


# %% tags=["check"]
answer_3 = solution_3  # your function here

noise = 0.1 * np.random.default_rng(0).normal(size=(200, 128))
assert [answer_3(encoding[place] + noise[place]) for place in range(0, 200, 7)] == list(range(0, 200, 7))
print("Exercise 3 is right.")

# %% [markdown]
# ## What to read next
#
# - Sections 3.1, 3.2.3 and 3.5 of [the paper](https://arxiv.org/abs/1706.03762).
# - [nn/seq2seq.py](../transformer_jax/nn/seq2seq.py): `hidden` for training, `remember` and `step` for translation.
# - [docs/translation.md](../docs/translation.md): beam search, sampling, prefixes, streaming.
# - Su et al., [*RoFormer*](https://arxiv.org/abs/2104.09864) (2021), which rotates queries and keys rather than adding
#   sinusoids.
