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
# # 3. 网络结构与掩码
#
# [![在 Colab 中打开](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/transformer-jax/blob/main/notebooks/zh/03_network.ipynb)
# · [English](../03_network.ipynb)
#
# 本篇拆解论文图 1：各个子层及流经其中的数组形状；残差连接和层归一化对深层网络梯度的影响（3.1 节）；以及如何借助掩码，把长短不一的句子放进同一批次，甚至同一行。注意力见[第 1 篇](01_attention.ipynb)，位置编码和解码见[第 2 篇](02_positions.ipynb)。

# %%
# 未安装本项目时（例如在 Colab 中）自动安装。
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
# ## 各个子层与形状
#
# 两个句子（B = 2），源句 7 个词元（S），目标句 5 个词元（T），模型宽度 D = 64，N = 4 个头，前馈网络宽度 F = 128。子层之间传递的数组形状始终是 `[B, S, D]` 或 `[B, T, D]`，即每个词元一个向量；只有子层内部的形状会变。

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
logits = hidden @ embedding.table[...].T  # 输出层与嵌入共用权重（3.4 节）
decoder = [
    ("embedding + positions", y, target_tokens),
    ("masked self-attention", looked_back, weights[0]),
    ("cross-attention", looked_over, weights[1]),
    ("feed-forward", hidden, inside),
    ("output layer", logits, None),
]

# 直接调用整层，结果相同。
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
        if height and name != "output layer":  # 绕过该子层的残差连接
            style = {"arrowstyle": "->", "connectionstyle": "bar,fraction=-0.25", "color": "#999999"}
            axis.annotate("", (left, 2 * height + 1.3), (left, 2 * height - 0.3), arrowprops=style)
    axis.text(left + 1.7, -0.5, title, ha="center", weight="bold")
axis.annotate("", (6, 4.55), (3.4, 5.5), arrowprops={"arrowstyle": "->", "color": "#6aa84f"})
axis.text(3.9, 5.45, "keys, values", color="#6aa84f")
axis.set(xlim=(-1.2, 9.8), ylim=(-0.8, 10.2))
axis.axis("off")
plt.show()

# %% [markdown]
# 灰线是残差连接。论文在两侧各堆叠六层，每个解码器层都读取最后一个编码器层的输出。
#
# ## 残差连接：归一化放在前面还是后面
#
# 论文在相加之后做归一化（**post-norm**），后来的模型大多在子层之前做（**pre-norm**）：
#
# $$\mathrm{LayerNorm}(x + \mathrm{Sublayer}(x)) \qquad\text{或}\qquad x + \mathrm{Sublayer}(\mathrm{LayerNorm}(x))$$
#
# 采用 pre-norm 时，有一条贯穿所有层、不经过任何归一化的通路，梯度可以沿它直接回传；采用 post-norm 时，每一层都会重新缩放梯度。下面是初始化时各层的梯度范数，模型的深度是论文的三倍。（`scan_layers` 把各层参数沿一个轴堆叠起来，编译更快。）

# %%
DEPTH = 18
source = jax.random.randint(jax.random.key(2), (8, 20), 3, VOCABULARY)
target, labels = jax.random.randint(jax.random.key(3), (2, 8, 20), 3, VOCABULARY)


def gradients_by_layer(norm_first):
    """编码器和解码器各层前馈网络权重 W_1 的梯度范数。"""
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

    def loss(params):  # 交叉熵
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
print({name: f"{ratio:,.1f}" for name, ratio in ratios.items()}, "（解码器末层与首层之比）")
assert ratios["pre-norm"] < 5
assert ratios["post-norm"] > 20

# %% [markdown]
# post-norm 解码器的梯度在回传途中逐层衰减，Liu 等（2020）也观察到这一现象：如果用普通的梯度下降，高层大步更新时，低层几乎不动。Adam 会拉平各层的步长，但 post-norm 模型还需要学习率预热（warmup，5.3 节）才能平稳渡过最初的若干步；Xiong 等（2020）表明，pre-norm 可以不用预热。论文只有六层，这样训练没有问题；很深的网络则多采用 pre-norm。
#
# ## 掩码
#
# 掩码是一个布尔数组，True 表示该查询（行）可以关注该键（列）。掩码有三种用途：
#
# - **填充**：同一批次中句子长短不一，空位以 0 填充，不能被读到；
# - **因果**：解码器不能看到要预测的内容（见第 2 篇）；
# - **分段**：几个句子放在同一行，彼此不可见。
#
# 几种掩码用 `&` 组合。

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
# 只要掩码正确，填充就毫无影响：有没有填充，句子的输出都相同。不用掩码则不然。

# %%
short = jax.random.normal(jax.random.key(4), (1, 5, D))
padded = jnp.concatenate([short, jnp.ones((1, 2, D))], axis=1)
np.testing.assert_allclose(encoder_layer(padded, padding_mask(tokens))[:, :5], encoder_layer(short), atol=1e-5)
print("不用掩码时，输出相差", float(jnp.abs(encoder_layer(padded)[:, :5] - encoder_layer(short)).max()))

# %% [markdown]
# ## 打包
#
# 填充虽不影响结果，却要付出计算量：硬件照样要为它做乘法。如果每句占一行，那么所有行都与最长的句子等长。**打包**（packing）把几个句子放进同一行，用段号（segment）区分彼此，位置在每句开头从 0 重新计数。
#
# 下面随机生成 60 个长度不一的句对，每行最多放 32 个词元：

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
# 词元还是那些词元，行数却少了许多。其他都不变：无论打包还是单独一行，句子的输出都相同。`Seq2Seq` 会根据段号生成掩码。

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
print(f"{len(pairs)} 个句对打包成 {len(rows)} 行，logits 与各占一行（共 {len(pairs)} 行）时完全一致。")

# %% [markdown]
# ## 练习
#
# 每道题都有一段默认折叠的参考答案，以及一个检查单元格：把其中的 `solution_1` 换成你自己写的函数即可。
#
# **练习 1.** 用 NumPy 写出层归一化 `normalize(x)`：沿最后一维归一化为均值 0、方差 1，计算时给方差加上 $\epsilon = 10^{-5}$。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 1
def solution_1(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)


# %% tags=["check"]
answer_1 = solution_1  # 换成你的函数

x = np.random.default_rng(1).normal(3, 5, (2, 4, D)).astype(np.float32)
np.testing.assert_allclose(answer_1(x), LayerNorm(D)(jnp.asarray(x)), atol=1e-4)
print("练习 1 正确。")

# %% [markdown]
# **练习 2.** 写出 `window(length, width)`：形状为 `[length, length]` 的因果掩码，每个位置只能看到自己和前面 `width - 1` 个位置。处理长文本的模型常用这种掩码。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 2
def solution_2(length, width):
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < width)


# %% tags=["check"]
answer_2 = solution_2  # 换成你的函数

np.testing.assert_array_equal(answer_2(6, 6), causal_mask(6)[0, 0])
np.testing.assert_array_equal(answer_2(6, 1), np.eye(6, dtype=bool))
assert answer_2(9, 3).sum() == 9 + 8 + 7
print("练习 2 正确。")

# %% [markdown]
# **练习 3.** 窗口宽度为 `w` 时，一个位置能看到包括自己在内的 `w` 个位置。堆叠 `n` 层之后能看到多少个？写出 `reach(n, w)`，假定该位置离序列开头足够远。


# %% tags=["solution", "hide-input"] jupyter={"source_hidden": true} cellView="form"
# @title 参考答案 3
def solution_3(layers, width):
    return layers * (width - 1) + 1  # 每层向前多看 width - 1 个位置


# %% tags=["check"]
answer_3 = solution_3  # 换成你的函数

for layers, width in ((1, 4), (3, 2), (4, 3)):
    seen = np.linalg.matrix_power(solution_2(20, width).astype(int), layers)[-1]
    assert answer_3(layers, width) == np.count_nonzero(seen)
print("练习 3 正确。")

# %% [markdown]
# ## 延伸阅读
#
# - [论文](https://arxiv.org/abs/1706.03762) 3.1 节和图 1。
# - [nn/layers.py](../../transformer_jax/nn/layers.py)：各个子层；[data/packing.py](../../transformer_jax/data/packing.py)：哪些句子放进同一行。
# - Xiong 等，[*On layer normalization in the Transformer architecture*](https://arxiv.org/abs/2002.04745)（2020）；Liu 等，[*Understanding the difficulty of training Transformers*](https://arxiv.org/abs/2004.08249)（2020）。
# - [docs/architecture.md](../../docs/architecture.md)：一个训练批次从文件到检查点的全过程。
