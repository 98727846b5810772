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
# # 1. 多头注意力
#
# [![在 Colab 中打开](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/zh/01_attention.ipynb)
# · [English](../01_attention.ipynb)
#
# *Attention Is All You Need*（[Vaswani 等，2017](https://arxiv.org/abs/1706.03762)）提出了一种不用循环网络的翻译模型。本篇讲解取代循环结构的注意力（论文 3.2 节）：为什么需要它，它计算什么，分数为什么要除以 $\sqrt{d_k}$，以及各个头学到了什么。
#
# 阅读本篇只需要一点 Python 和矩阵乘法的基础，文中的 JAX 代码基本可以当作 NumPy 来读。

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
# ## 循环是一条链
#
# 循环神经网络逐个读入词元，读完第 $t$ 个词元后的状态取决于前一个状态：
#
# $$h_t = \tanh(W h_{t-1} + x_t)$$
#
# $n$ 个词元需要 $n$ 步，后一步必须等前一步算完，处理器再多也没有用。注意力则同时处理所有词元对：乘法次数从 $O(n d^2)$ 变为 $O(n^2 d)$，但必须串行的步数只有 $O(1)$（论文表 1）。
#
# 两者都只要几行代码。这里用 `causal_mask` 让每个位置只能看到自己和前面的位置，与循环网络一致。

# %%
WIDTH = 512  # 论文基础模型的 d_model
W = jax.random.orthogonal(jax.random.key(0), WIDTH) * 0.9


def recurrence(x):  # [n, WIDTH] 到 [n, WIDTH]
    def step(h, x_t):
        h = jnp.tanh(h @ W + x_t)
        return h, h

    return jax.lax.scan(step, jnp.zeros(WIDTH), x)[1]


def attention(x):  # 形状同上
    one_head = x[None, :, None, :]  # [B, n, N, H]：一个句子，一个头
    return dot_product_attention(one_head, one_head, one_head, causal_mask(len(x)))[0, :, 0]


# %% [markdown]
# 下面测量前向和反向计算的时间随序列长度的变化。首次调用包含编译，不计入。


# %%
def seconds(function, x, repeats=5):
    """多次运行中的最短时间。"""
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
# 循环的耗时与 $n$ 成正比，因为每一步都在等上一步。当 $n$ 明显小于 $d$ 时（一般的句子都是如此），注意力只需几分之一的时间；$n$ 再大，$n^2$ 的影响就显现出来，两条线相交。这还是在两个 CPU 核心上，注意力的并行性几乎没有用武之地。在 GPU 和 TPU 上，链式计算会让成千上万个计算单元闲置，文本要长得多，两条线才会相交。
#
# 这条链还会妨碍学习。第一个词元的信息要经过 $n-1$ 步才能到达最后一个位置，每一步都可能衰减；注意力则把两者直接相连（即表 1 中的“最大路径长度”）。看最后一个输出对各个输入的梯度，就一目了然：

# %%
x = inputs[64]  # 随机词元只与自己相似，所以送入注意力之前先缩小
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
# ## 查询、键和值
#
# 注意力可以看作“软”的字典查找。每个词元提供一个**键**（供查询匹配）和一个**值**（要传达的内容）；需要查找信息的词元则给出一个**查询**。查询与所有键分别做点积得到分数，经 softmax 变成总和为 1 的权重，结果就是各个值的加权平均：
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V \qquad (1)$$
#
# 举一个可以手算的例子：一个查询，三个键，$d_k = 4$，所以 $\sqrt{d_k} = 2$。

# %%
q = np.array([2, 0, 2, 0])
K = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0]])  # 每个词元一行
V = np.array([[10, 0], [0, 10], [5, 5]])

scores = K @ q  # 各个键的匹配程度：2、0、4
scaled = scores / math.sqrt(len(q))  # 1、0、2
powers = np.exp(scaled)  # e、1、e²
weights = powers / powers.sum()
output = weights @ V

print("scores  ", scores)
print("scaled  ", scaled)
print("exp     ", powers.round(2))
print("weights ", weights.round(3), "总和", weights.sum().round(3))
print("output  ", output.round(2))

# %% [markdown]
# 第三个键最匹配，得到三分之二的权重；第二个键完全不匹配，仍分到 9%。softmax 不会让任何权重恰好为零，因此每个键都有梯度。
#
# ## 为什么要除以 $\sqrt{d_k}$
#
# 设查询和键的各个分量相互独立，均值为 0，方差为 1。点积是 $d_k$ 个方差为 1 的项之和，方差为 $d_k$（论文脚注 4），所以分数的大小随 $\sqrt{d_k}$ 增长。分数过大时 softmax 会饱和：一个权重接近 1，其余接近 0，梯度几乎消失。

# %%
widths = np.array([4, 16, 64, 256, 1024])
KEYS = 16


def statistics(d_k, scale):
    """分数的标准差、最大权重、softmax 雅可比矩阵的范数，对 500 个查询取平均。"""
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
# ## 逐行实现公式 (1)
#
# 实际计算中会同时处理许多查询、多个头和多个句子。数组形状为 `[B, T, N, H]`：批大小、词元数、头数、每个头的宽度。

# %%
B, T, N, H = 2, 6, 4, 16
query, key, value = jax.random.normal(jax.random.key(1), (3, B, T, N, H))
mask = causal_mask(T)  # [1, 1, T, T]，True 表示允许关注

scores = jnp.einsum("BTNH,BSNH->BNTS", query, key)  # 每个句子、每个头的 QKᵀ
scores = scores / jnp.sqrt(H)  # H 即 d_k
scores = jnp.where(mask, scores, -jnp.inf)  # exp(-inf) = 0，权重为零
weights = jax.nn.softmax(scores, axis=-1)  # 在键的维度上归一化
output = jnp.einsum("BNTS,BSNH->BTNH", weights, value)
print(output.shape, weights.shape)

# %% [markdown]
# 本项目中，同一个公式有两种实现：`scaled_dot_product_attention` 同时返回权重，便于观察；`dot_product_attention` 是训练和翻译时实际使用的快速版本。三者结果一致。

# %%
literal, literal_weights = scaled_dot_product_attention(query, key, value, mask)
fast = jax.jit(dot_product_attention)(query, key, value, mask)
np.testing.assert_allclose(literal, output, atol=1e-5)
np.testing.assert_allclose(literal_weights, weights, atol=1e-5)
np.testing.assert_allclose(fast, output, atol=1e-5)

# %% [markdown]
# ## 多个头
#
# 一次 softmax 只能得到一个加权平均，无法同时关注动词和主语而又把两者区分开。多头注意力（3.2.2 节）并行计算 $h$ 个注意力，每个头有自己的投影，宽度为 $d_k = d_{model}/h$：
#
# $$\mathrm{MultiHead}(Q,K,V) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O, \quad
# \mathrm{head}_i = \mathrm{Attention}(QW_i^Q, KW_i^K, VW_i^V)$$
#
# 各个头平分总宽度，所以参数量与 $h$ 无关。所有 $W_i^Q$ 并排放在同一个矩阵里，一次乘法就完成全部头的投影，再由 `split_heads` 切开。

# %%
layer = MultiHeadAttention(64, num_heads=4, rngs=nnx.Rngs(0))
x = jax.random.normal(jax.random.key(2), (1, 5, 64))  # [B, T, D]

queries, keys, values = (split_heads(part(x), 4) for part in (layer.query, layer.key, layer.value))  # [B, T, N, H]
heads = [  # 逐个头计算
    scaled_dot_product_attention(queries[:, :, [i]], keys[:, :, [i]], values[:, :, [i]])[0] for i in range(4)
]
by_hand = layer.out(merge_heads(jnp.concatenate(heads, axis=2)))
np.testing.assert_allclose(layer(x, x), by_hand, atol=1e-5)

for heads in (1, 4, 16):
    parameters = jax.tree.leaves(nnx.state(MultiHeadAttention(64, num_heads=heads, rngs=nnx.Rngs(0))))
    print(f"{heads:2} 个头：{sum(p.size for p in parameters):,} 个参数")

# %% [markdown]
# ## 每个头在看什么
#
# 下面训练两个小模型，把 1,000 以内的德语数词译成英语，一个是单头，另一个是四头，其余完全相同。德语的 *drei-und-vierzig*（三和四十）在英语里是 *forty-three*，顺序相反，解码器必须前后跳着看。
#
# `transformer_jax.run` 接受一份配置和一个目录，训练好的模型就保存在该目录中。每个模型只需训练几秒到几十秒。

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
    with contextlib.redirect_stdout(io.StringIO()):  # 训练日志
        outcome = transformer_jax.run(config, folder / f"{num_heads}-heads")
    print(f"{num_heads} 个头：50 个未见过的数，正确率 {outcome.scores['exact_match']:.0%}")
    return transformer_jax.load(outcome.model)


models = {num_heads: trained(num_heads) for num_heads in (1, 4)}

# %%
TEXT = "siebenhunderteinundzwanzig"  # 721


def look(num_heads):
    [[best]] = models[num_heads].search([TEXT], return_attention=True)
    print(best.text)
    source, target, weights = best.alignment  # weights：[层, 头, 目标, 源]
    return plots.attention_maps(weights, target, source), weights


figure, one = look(1)
figure.set_dpi(80)
display(figure)

# %%
figure, four = look(4)
figure.set_dpi(80)
display(figure)

# %% [markdown]
# 每一行对应一个输出词元，每一列对应源句的一个子词，颜色越深权重越大。单头模型只有一张注意力图；四个头则各看各的：有的跟着正在翻译的词走，有的看向别处，例如句尾；一个头没有要找的内容时，句尾常常是它的落脚点。
#
# 各个头的差别有多大？对每个输出词元比较两个头的权重：各处权重之差取绝对值，求和后除以 2；权重完全相同时为 0，关注的位置毫无重叠时为 1。

# %%
maps = np.asarray(four[0])  # [头, 目标, 源]
distance = np.abs(maps[:, None] - maps[None]).sum(-1).mean(-1) / 2  # [头, 头]
print(distance.round(2))
assert distance[~np.eye(4, dtype=bool)].min() > 0.05

# %% [markdown]
# ## 练习
#
# 每道题都有一段默认折叠的参考答案，以及一个检查单元格：把其中的 `solution_1` 换成你自己写的函数即可。
#
# **练习 1.** 用 NumPy 写出沿最后一维计算的 `softmax(scores)`，分数达到 1,000 时也不能溢出。（提示：可以从所有分数中减去哪个常数？）


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 1
def solution_1(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# %% tags=["check"]
answer_1 = solution_1  # 换成你的函数

np.testing.assert_allclose(answer_1(np.array([[0.0, 1.0, 2.0]])), jax.nn.softmax(jnp.array([[0.0, 1.0, 2.0]])), 1e-5)
np.testing.assert_allclose(answer_1(np.array([[1000.0, 1000.0], [0.0, 1000.0]])), [[0.5, 0.5], [0.0, 1.0]])
print("练习 1 正确。")

# %% [markdown]
# **练习 2.** 把注意力当作精确查找：写出 `lookup(keys)`，返回一个查询，使最后一个键得到几乎全部权重（大于 0.99）。各个键互相正交，长度为 1，形状为 `[S, H]`。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 2
def solution_2(keys):
    return 100.0 * keys[-1]  # 方向相同，且长到足以让 softmax 饱和


# %% tags=["check"]
answer_2 = solution_2  # 换成你的函数

keys = jax.random.orthogonal(jax.random.key(3), 16)[:10]
found = answer_2(keys)[None, None, None]
_, weights = scaled_dot_product_attention(found, keys[None, :, None], keys[None, :, None])
assert weights.shape == (1, 1, 1, 10)
assert weights[0, 0, 0, -1] > 0.99
print("练习 2 正确。")

# %% [markdown]
# **练习 3.** 只计乘法次数：序列达到多长时，注意力的 $2 n^2 d$ 次开始超过循环的 $n d^2$ 次？写出 `crossover(d)`，返回满足条件的最小整数 $n$。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 3
def solution_3(d):
    return d // 2 + 1  # 2 n² d > n d² 等价于 n > d / 2


# %% tags=["check"]
answer_3 = solution_3  # 换成你的函数

for d in (2, 7, 64, 512):
    n = answer_3(d)
    assert 2 * n**2 * d > n * d**2
    assert 2 * (n - 1) ** 2 * d <= (n - 1) * d**2
print("练习 3 正确。")

# %% [markdown]
# ## 延伸阅读
#
# - [第 2 篇](02_positions.ipynb)：没有位置信息时注意力看不到什么，以及译文是如何逐步解码出来的。
# - [论文](https://arxiv.org/abs/1706.03762) 3.2 节和第 4 节；[docs/paper.md](../../docs/paper.md) 列出了每个公式对应的函数。
# - [nn/attention.py](../../transformer_jax/nn/attention.py)：全部注意力代码，不到 200 行。
# - Bahdanau 等，[*Neural machine translation by jointly learning to align and translate*](https://arxiv.org/abs/1409.0473)（2015）：对源句的注意力最早由这篇论文提出。
