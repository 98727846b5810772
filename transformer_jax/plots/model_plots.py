"""Pictures of what a model computes: attention, positional encodings and masks."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from transformer_jax.plots.drawing import (
    FONT_SIZE,
    LONGEST_SIDE,
    fitting_font_size,
    label_inches,
    name_ticks,
    new_figure,
    token_label,
    upright,
    upright_inches,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL = 0.22  # inches
_COLOURS = "Blues"
_MOST_NUMBERED = 40  # columns of numbers; beyond, they would be too small to read


def attention_maps(
    weights: Float[Any, "layers N T S"], queries: Sequence[str], keys: Sequence[str], *, title: str = ""
) -> "Figure":
    """The weights of each layer and head as a map: a row per query, a column per key, darker for larger weights.

    Args:
        weights: from 0 to 1, such as `Alignment.weights`.
        queries: T tokens that attend, such as the target.
        keys: S tokens that are attended to, such as the source.
        title: of the picture.

    Raises:
        ValueError: if there are not as many tokens as weights.
    """
    values = np.asarray(weights, np.float32)
    layers, heads, *_ = values.shape
    _check_tokens(values.shape[2:], queries, keys)
    rows, columns = list(map(token_label, queries)), list(map(token_label, keys))
    cell = min(_CELL, LONGEST_SIDE / max(heads * (len(columns) + 1), layers * (len(rows) + 1)))
    size = fitting_font_size(cell)
    panel_width = max(cell * len(columns), 0.9)
    cell_width, panel_height = panel_width / len(columns), cell * len(rows)
    column_size = min(FONT_SIZE, size * cell_width / cell)
    left = label_inches(rows, size) + 0.15
    above = upright_inches(columns, column_size, cell_width) + 0.35
    gap, right, top, bottom = 0.15, 0.9, 0.3 if title else 0.05, 0.1
    width = left + heads * (panel_width + gap) + right
    height = top + layers * (above + panel_height) + bottom
    with new_figure(width, height, [*rows, *columns, title]) as figure:
        for layer in range(layers):
            for head in range(heads):
                x = left + head * (panel_width + gap)
                y = height - top - (layer + 1) * (above + panel_height)
                box = x / width, y / height, panel_width / width, panel_height / height
                axes = figure.add_axes(box)
                image = axes.imshow(values[layer, head], aspect="auto", cmap=_COLOURS, norm=_shades())
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_color("lightgray")
                # As texts, since a tick is several artists, and there are many.
                across, down = axes.get_xaxis_transform(), axes.get_yaxis_transform()
                for place, (label, rotation) in enumerate(upright(columns, column_size, cell_width)):
                    where = place, 1 + 0.03 / panel_height
                    text = axes.text(*where, label, transform=across, ha="center", va="bottom", fontsize=column_size)
                    text.set(rotation=rotation, linespacing=1.0)
                for place, label in enumerate(rows if head == 0 else ()):
                    where = -0.03 / panel_width, place
                    axes.text(*where, label, transform=down, ha="right", va="center_baseline", fontsize=size)
                heading = 1 + (above - 0.22) / panel_height
                axes.text(0.5, heading, f"layer {layer}, head {head}", transform=axes.transAxes, ha="center")
        bar = figure.add_axes(
            ((width - right + 0.05) / width, bottom / height, 0.12 / width, min(panel_height, 2) / height)
        )
        figure.colorbar(image, cax=bar, ticks=[0, 0.1, 0.5, 1])
        bar.tick_params(labelsize=FONT_SIZE - 1)
        if title:
            figure.text(left / width, 1 - 0.1 / height, title, ha="left", va="top", fontsize=FONT_SIZE + 2)
    return figure


def attention_of_token(weights: Float[Any, "N S"], keys: Sequence[str], query: str) -> "Figure":
    """The attention of one token over a sentence: a line of the tokens for each head, and for the mean of the heads.

    Args:
        weights: from 0 to 1, of each head, such as `weights[layer, :, position]` of all of them.
        keys: the S tokens of the sentence.
        query: the token that attends.

    Raises:
        ValueError: if there are not as many tokens as weights.
    """
    values = np.asarray(weights, np.float32)
    _check_tokens(values.shape[1:], keys)
    values = np.vstack([values, values.mean(axis=0, keepdims=True)])
    columns = list(map(token_label, keys))
    rows = [*(f"head {head}" for head in range(len(values) - 1)), "mean"]
    is_numbered = len(columns) <= _MOST_NUMBERED
    cell = max(0.34, min(label_inches(columns, FONT_SIZE) + 0.08, 0.6)) if is_numbered else _CELL
    cell = min(cell, LONGEST_SIDE / len(columns))
    size = FONT_SIZE if is_numbered else fitting_font_size(cell)
    left, right, below = 0.75, 0.8, 0.1
    above = upright_inches(columns, size, cell) + 0.5
    width, height = left + cell * len(columns) + right, above + 0.3 * len(rows) + below
    with new_figure(width, height, [*columns, query]) as figure:
        box = left / width, below / height, cell * len(columns) / width, 0.3 * len(rows) / height
        axes = figure.add_axes(box)
        image = axes.imshow(values, aspect="auto", cmap=_COLOURS, norm=_shades())
        axes.xaxis.tick_top()
        name_ticks(axes, "x", columns, size, cell)
        name_ticks(axes, "y", rows, FONT_SIZE)
        for (row, column), value in np.ndenumerate(values) if is_numbered else ():
            colour = "white" if value > 0.4 else "black"
            shown = f"{value:.2f}".removeprefix("0") if value >= 0.005 else ""
            axes.text(column, row, shown, ha="center", va="center", fontsize=FONT_SIZE - 2, color=colour)
        axes.axhline(len(rows) - 1.5, color="gray", linewidth=1)
        axes.spines[:].set_color("lightgray")
        axes.set_title(f"attention of “{token_label(query)}”", loc="left", pad=8)
        bar = figure.add_axes(((width - right + 0.1) / width, box[1], 0.12 / width, box[3]))
        figure.colorbar(image, cax=bar, ticks=[0, 0.1, 0.5, 1])
    return figure


class AttentionExample(NamedTuple):
    """A text and its output, with the weights of each kind of attention, for `attention_page`."""

    source: Sequence[str]
    """S tokens."""
    target: Sequence[str]
    """T tokens."""
    weights: Mapping[str, Float[Any, "layers N Q K"]]
    """By kind: "cross" [T, S], "encoder" [S, S], "decoder" [T, T]; any of them. A row of the decoder's is the position
    that outputs a token of the target; the columns are what it has read: the start of the sentence, then the target."""


_SIDES = {"cross": ("target", "source"), "encoder": ("source", "source"), "decoder": ("target", "output so far")}
"""Queries and keys of each kind of attention."""


def attention_page(examples: Sequence[AttentionExample], *, title: str = "Attention") -> str:
    """A web page that shows attention by lines from each query to the keys, in the manner of BertViz (Vig, 2019).

    Text, kind of attention, layer and heads can be chosen; the pointer on a token leaves only its lines. The page is
    one file that loads nothing else. Weights are rounded to thousandths.

    Args:
        examples: at least one.
        title: of the page.

    Raises:
        ValueError: if there are no examples, a kind of attention is unknown, or tokens and weights do not fit.
    """
    if not examples:
        raise ValueError("There is no attention to show.")
    data = []
    for example in examples:
        read = ["<s>", *example.target[:-1]]
        sides = {"source": example.source, "target": example.target, "output so far": read}
        kinds = {}
        for kind, weights in example.weights.items():
            if kind not in _SIDES:
                raise ValueError(f"{kind!r} is no kind of attention; known: {', '.join(_SIDES)}.")
            queries, keys = _SIDES[kind]
            values = np.asarray(weights, np.float64)
            _check_tokens(values.shape[2:], sides[queries], sides[keys])
            kinds[kind] = {"queries": queries, "keys": keys, "weights": (1000 * values).round().astype(int).tolist()}
        data.append({side: list(map(token_label, tokens)) for side, tokens in sides.items()} | {"kinds": kinds})
    template = importlib.resources.files(__package__).joinpath("attention_page.html").read_text(encoding="utf-8")
    content = json.dumps({"title": title, "examples": data}, ensure_ascii=False, separators=(",", ":"))
    # Within a script element only "<" could end it.
    return template.replace("{DATA}", content.replace("<", "\\u003c"))


def positional_encodings(encodings: Float[Any, "S D"]) -> "Figure":
    """Positional encodings, and the dot product of each pair: how alike positions look to attention.

    Args:
        encodings: a row per position, such as `sinusoidal_positions(jnp.arange(64), 128)` or a learned table.
    """
    values = np.asarray(encodings, np.float32)
    with new_figure(10.0, 4.2, layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        most = float(np.abs(values).max(initial=1e-9))
        image = left.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        left.set(title="encoding", xlabel="dimension", ylabel="position")
        figure.colorbar(image, ax=left)
        image = right.imshow(values @ values.T, cmap="viridis", interpolation="nearest")
        right.set(title="dot products", xlabel="position", ylabel="position")
        figure.colorbar(image, ax=right)
    return figure


def attention_masks(masks: Mapping[str, Bool[Any, "_ _"]], tokens: Sequence[str] | None = None) -> "Figure":
    """Masks side by side: a row per query, a column per key, dark where the query may attend.

    Args:
        masks: by name, each [T, S], such as `causal_mask(8)[0, 0]`; at least one.
        tokens: names of the positions, as many as the largest mask has; default: numbers.

    Raises:
        ValueError: if there are fewer tokens than positions.
    """
    arrays = {name: np.asarray(mask) for name, mask in masks.items()}
    longest = max(max(mask.shape) for mask in arrays.values())
    labels = list(map(token_label, map(str, range(longest)) if tokens is None else tokens))
    if len(labels) < longest:
        raise ValueError(f"There are {longest:,} positions, but {len(labels):,} tokens.")
    side = min(max(0.26 * longest, 1.8), 6.0)
    size = fitting_font_size(side / longest)
    width = len(arrays) * (side + label_inches(labels, size) + 0.4)
    with new_figure(width, side + 1.1, [*labels, *arrays], layout="constrained") as figure:
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        colours = ["#f0f0f0", "#2b6cb0"]
        for axes, (name, mask) in zip(figure.subplots(1, len(arrays), squeeze=False)[0], arrays.items(), strict=True):
            axes.imshow(mask, cmap=ListedColormap(colours), vmin=0, vmax=1)
            name_ticks(axes, "x", labels[: mask.shape[1]], size, side / longest)
            name_ticks(axes, "y", labels[: mask.shape[0]], size)
            for border in range(1, longest):
                axes.axhline(border - 0.5, color="white", linewidth=1)
                axes.axvline(border - 0.5, color="white", linewidth=1)
            axes.spines[:].set_visible(False)
            axes.set(title=name, xlabel="key", ylabel="query")
        patches = [Patch(color=colour) for colour in reversed(colours)]
        figure.legend(patches, ["may attend", "masked"], loc="outside lower center", ncols=2, frameon=False)
    return figure


def _shades() -> Any:
    """The norm of attention weights: from 0 to 1, with small ones told apart too."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, vmin=0.0, vmax=1.0)


def _check_tokens(shape: Sequence[int], *sides: Sequence[Any]) -> None:
    lengths = tuple(map(len, sides))
    if tuple(shape) != lengths or not all(lengths):
        raise ValueError(f"Attention of shape {tuple(shape)} does not fit {' and '.join(map(str, lengths))} tokens.")
