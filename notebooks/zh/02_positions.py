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
# # 2. 位置；编码与解码的区别
#
# [![在 Colab 中打开](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/zh/02_positions.ipynb)
# · [English](../02_positions.ipynb)
#
# 在注意力眼里，句子只是一个集合。本篇先说明这意味着什么，以及正弦位置编码怎样找回顺序（论文 3.5 节）；再看解码器与编码器的区别：训练时它一次读入整个右移后的目标序列（3.1 节），翻译时则逐个词元生成，并使用缓存。注意力本身见[第 1 篇](01_attention.ipynb)。

# %%
# 未安装本项目时（例如在 Colab 中）自动安装。
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
# ## 注意力看不到什么
#
# 做一个置换实验：一种做法是先打乱词元顺序，再做自注意力；另一种是先做自注意力，再按同样的次序打乱输出。无论该层的权重是什么，两种结果都相等：$f(Px) = P f(x)$。在注意力看来，“狗咬人”和“人咬狗”是同样的三个向量。

# %%
D, T = 64, 8
layer = MultiHeadAttention(D, num_heads=4, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(0), (1, T, D))
order = jax.random.permutation(jax.random.key(1), T)

shuffled = x[:, order]
np.testing.assert_allclose(layer(shuffled, shuffled), layer(x, x)[:, order], atol=1e-5)

# %% [markdown]
# 给每个向量加上一个只取决于位置的量，顺序就起作用了：

# %%
positions = sinusoidal_positions(jnp.arange(T), D)  # [T, D]
in_order = layer(x + positions, x + positions)[:, order]
out_of_order = layer(shuffled + positions, shuffled + positions)
difference = float(jnp.abs(out_of_order - in_order).mean() / jnp.abs(in_order).mean())
print(f"现在两种输出相差 {difference:.0%}。")
assert difference > 0.1

# %% [markdown]
# ## 正弦位置编码
#
# 位置 $pos$ 的编码由一组正弦和余弦组成，波长从 $2\pi$ 到接近 $10000 \cdot 2\pi$：
#
# $$PE_{(pos, 2i)} = \sin\frac{pos}{10000^{2i/d_{model}}}, \qquad
# PE_{(pos, 2i+1)} = \cos\frac{pos}{10000^{2i/d_{model}}}$$
#
# 左图每行是一个位置：靠左的列变化快，靠右的列变化慢，就像数字的低位和高位。右图是任意两个位置的点积。

# %%
figure = plots.positional_encodings(sinusoidal_positions(jnp.arange(64), 128))
figure.set_dpi(70)
display(figure)

# %% [markdown]
# 与对角线平行的条纹说明，点积只取决于两个位置的距离。原因是 $\sin a \sin b + \cos a \cos b = \cos(a - b)$，再对所有频率 $\omega_i$ 求和：
#
# $$PE_p \cdot PE_{p+k} = \sum_i \cos(\omega_i k)$$
#
# 所以从三个位置出发的曲线完全重合：

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
# 作者选用正弦函数的理由是：对固定的 $k$，$PE_{pos+k}$ 是 $PE_{pos}$ 的线性函数，且与 $pos$ 无关。每一对正弦和余弦各旋转 $\omega_i k$ 角，因此一个头可以学到一个投影，专门“看前面第三个词元”。

# %%
k = 3
rotation = np.zeros((128, 128))
for i, angle in enumerate(omega * k):
    pair = slice(2 * i, 2 * i + 2)
    rotation[pair, pair] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
np.testing.assert_allclose(encoding[:-k] @ rotation.T, encoding[k:], atol=1e-4)

# %% [markdown]
# ## 训练一个用来观察的模型
#
# 与第 1 篇相同，训练一个小模型翻译 1,000 以内的德语数词，几秒到几十秒即可。

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
with contextlib.redirect_stdout(io.StringIO()):  # 训练日志
    outcome = transformer_jax.run(config, folder / "run")
translator = transformer_jax.load(outcome.model)
model = translator.model  # 网络本身，一个 Seq2Seq
print(f"50 个未见过的数，正确率 {outcome.scores['exact_match']:.0%}。")

# %% [markdown]
# ## 目标右移与教师强制
#
# 解码器根据前面的词元预测下一个词元。训练时整个目标句已知，所以所有位置的预测可以一次算完：把目标序列**右移**一位，最前面补上起始符，作为解码器的输入；每个位置的标签就是接下来的那个词元。不管模型自己会写出什么，输入的始终是正确的词元，这叫作**教师强制**（teacher forcing）。

# %%
TEXT, REFERENCE = "siebenhunderteinundzwanzig", "seven hundred and twenty-one"
source_tokens, target_tokens = translator.tokenizer.source, translator.tokenizer.target
bos, eos = target_tokens.special_tokens.bos, target_tokens.special_tokens.eos

source = [*source_tokens.encode(TEXT), eos]
labels = [*target_tokens.encode(REFERENCE), eos]
shifted = [bos, *labels[:-1]]

logits = model(jnp.array([source]), jnp.array([shifted]))[0]  # [T, V]，一次算完
log_probs = jax.nn.log_softmax(logits)

print(f"{'reads':>10}  {'label':10}  {'best guess':10}  probability of the label（标签的概率）")
for place, (read, label) in enumerate(zip(shifted, labels, strict=True)):
    guess = int(log_probs[place].argmax())
    pieces = [target_tokens.piece(token) for token in (read, label, guess)]
    print(f"{pieces[0]:>10}  {pieces[1]:10}  {pieces[2]:10}  {float(jnp.exp(log_probs[place, label])):.3f}")

# %% [markdown]
# 这些对数概率之和就是整句的对数概率；取负后除以词元数，就是损失。`Translator.score` 算出的值与此相同：

# %%
total = float(sum(log_probs[place, label] for place, label in enumerate(labels)))
np.testing.assert_allclose(translator.score([TEXT], [REFERENCE])[0].log_prob, total, rtol=1e-3, atol=1e-4)
print(f"对数概率 {total:.4f} nat，损失 {-total / len(labels):.4f} nat/词元")

# %% [markdown]
# 一次算完所有位置有一个前提：任何位置都看不到自己的标签。因果掩码的作用正在于此（3.2.3 节）。检验方法是：换掉一个输入词元，看哪些输出会变。编码器的每个输出都依赖所有词元，解码器的输出只依赖自己和前面的词元。


# %%
def influence(function, tokens):
    """换掉各个词元时，各位置的输出变化多少：[词元, 位置]。"""
    before = function(jnp.array([tokens]))[0]
    changes = []
    for place, token in enumerate(tokens):
        other = [*tokens[:place], token + 1 if token < 50 else token - 1, *tokens[place + 1 :]]
        changes.append(jnp.abs(function(jnp.array([other]))[0] - before).max(axis=-1))
    return np.array(changes)


graphdef, params = split(model)  # 以函数式的方式使用，便于 JAX 做变换


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
assert (np.triu(np.ones_like(decoder)) * decoder == decoder).all()  # 被换词元之前的输出都不变

# %% [markdown]
# 翻译时没有“教师”，解码器读到的是自己生成的内容。一旦写错，就只能接着错误往下写，而这种情况训练时从未遇到（即曝光偏差，exposure bias）。强制它以错误的词开头，看它能否回到正轨：

# %%
for prefix in ("seven", "eight", "seven hundred and thirty"):
    print(f"{prefix + ' ...':28}", translator.translate([TEXT], prefix=prefix)[0])

# %% [markdown]
# ## 逐步解码与缓存
#
# 翻译时，源句只编码一次，然后循环调用解码器，逐个生成词元，直到生成句末符。因为前面的词元看不到后面的词元，它们的键和值不会再变，可以存入**缓存**，每一步只需计算最新词元的键和值。
#
# `remember` 对源句编码，并为交叉注意力算好键和值；`step` 每次接收一个最新的词元。

# %%
LONGEST = 12


@jax.jit
def step(params, token, cache, memory):
    return nnx.merge(graphdef, params).step(token, cache, memory)


memory = model.remember(jnp.array([source]))
cache = model.empty_cache(batch_size=1, beam_size=1, max_length=LONGEST)
token, written, step_logits, filled = bos, [], [], []
while token != eos and len(written) < LONGEST:
    logits, cache = step(params, jnp.array([[token]]), cache, memory)  # [B, K, V]：一个句子，一个假设
    token = int(logits[0, 0].argmax())  # 贪心
    written.append(token)
    step_logits.append(logits[0, 0])
    keys, values = cache.keys_values[0]  # [B, N, H, 位置] 和 [B, N, 位置, H]
    filled.append(jnp.linalg.norm(keys[0], axis=1))  # [N, 位置]
    print(f"第 {len(written)} 步：{' '.join(map(target_tokens.piece, written))}")

text = target_tokens.decode(written)
print(text)
assert text == translator.translate([TEXT], beam_size=1)[0]

# %% [markdown]
# 下图是每一步之后的缓存，颜色表示四个头中各个键的范数。每一列只写入一次，之后只读。

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
# 各步得到的 logits 与一次处理整个输出时相同：缓存只省计算，不改变结果。

# %%
whole = model(jnp.array([source]), jnp.array([[bos, *written[:-1]]]))[0]
np.testing.assert_allclose(jnp.stack(step_logits), whole, atol=1e-3)

# %% [markdown]
# ## 练习
#
# 每道题都有一段默认折叠的参考答案，以及一个检查单元格：把其中的 `solution_1` 换成你自己写的函数即可。
#
# **练习 1.** 写出 `shift(labels, bos)`：由一批标签 `[B, T]`（填充处为 0）得到解码器的输入。输入中填充的位置应与标签相同。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 1
def solution_1(labels, bos):
    shifted = np.roll(labels, 1, axis=1)
    shifted[:, 0] = bos
    return np.where(labels == 0, 0, shifted)


# %% tags=["check"]
answer_1 = solution_1  # 换成你的函数

found = answer_1(np.array([[7, 8, 9, 2], [5, 2, 0, 0]]), 1)
np.testing.assert_array_equal(found, [[1, 7, 8, 9], [1, 5, 0, 0]])
print("练习 1 正确。")

# %% [markdown]
# **练习 2.** 不用缓存时，第 $t$ 步要让全部 $t$ 个词元都经过解码器。写出 `saved(T)`：输出 $T$ 个词元时，用缓存可以少处理多少个词元。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 2
def solution_2(length):
    return length * (length + 1) // 2 - length  # 1 + 2 + ... + T，而不是 T


# %% tags=["check"]
answer_2 = solution_2  # 换成你的函数

assert [answer_2(length) for length in (1, 2, 3, 30)] == [0, 1, 3, 435]
print("练习 2 正确。")

# %% [markdown]
# **练习 3.** 写出 `position_of(vector)`：向量是某个位置（0 到 199）的正弦编码（宽度 128）加上少许噪声，求这个位置。（提示：它与哪个编码的点积最大？）


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 3
def solution_3(vector):
    return int((sinusoidal_positions(jnp.arange(200), 128) @ vector).argmax())  # 所有编码的长度相同


# %% tags=["check"]
answer_3 = solution_3  # 换成你的函数

noise = 0.1 * np.random.default_rng(0).normal(size=(200, 128))
assert [answer_3(encoding[place] + noise[place]) for place in range(0, 200, 7)] == list(range(0, 200, 7))
print("练习 3 正确。")

# %% [markdown]
# ## 延伸阅读
#
# - [论文](https://arxiv.org/abs/1706.03762) 3.1、3.2.3 和 3.5 节。
# - [nn/seq2seq.py](../../transformer_jax/nn/seq2seq.py)：训练用 `hidden`，翻译用 `remember` 和 `step`。
# - [docs/translation.md](../../docs/translation.md)：束搜索、采样、指定前缀、流式输出。
# - Su 等，[*RoFormer*](https://arxiv.org/abs/2104.09864)（2021）：不再加上正弦编码，而是旋转查询和键。
