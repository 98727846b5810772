"""Pictures of scores: confusion, calibration, BLEU by length, and broken rules by place."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from transformer_jax.plots.drawing import BASE_FONT, FONT_SIZE, label_inches, name_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_SIDE = 20.0  # inches
_MOST_NUMBERED, _MOST_NAMED = 25, 60  # classes; beyond, nobody could read them
_SMALL = 8.0  # points
_DARK = 0.36  # shares above are drawn dark
_BLUE, _RED, _GRAY = "#2b6cb0", "#c53030", "0.6"


def confusion_matrix(matrix: Int[Any, "C C"], names: Sequence[str]) -> "Figure":
    """A confusion matrix: each cell with its count and its share of the row, which also sets its colour.

    Beyond 25 classes the cells stay without numbers, beyond 60 the rows and columns without names.

    Args:
        matrix: examples by their class (rows) and the predicted one (columns).
        names: names of the classes.

    Raises:
        ValueError: if there are not as many names as classes.
    """
    matrix = np.asarray(matrix)
    if len(names) != len(matrix):
        raise ValueError(f"There are {len(matrix):,} classes, but {len(names):,} names of classes.")
    count, total = len(names), int(matrix.sum())
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(0.95 * count, _LONGEST_SIDE - 1.8)
    with new_figure(1.8 + side, 1.4 + side, names, layout="constrained") as figure:
        from matplotlib.colors import PowerNorm

        norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)  # so that a class's few mistakes show beside what it gets right
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", norm=norm)
        for (row, column), share in np.ndenumerate(shares) if count <= _MOST_NUMBERED else ():
            colour = "white" if share > _DARK else "black"
            number = f"{matrix[row, column]:,}"
            strong: dict[str, Any] = {
                "fontsize": 11,
                "fontweight": "bold",
                "fontfamily": BASE_FONT,
            }  # few fonts are bold too
            axes.text(column, row, number, ha="center", va="bottom", color=colour, **strong)
            axes.text(column, row + 0.08, f"{share:.1%}", ha="center", va="top", fontsize=8, color=colour)
        named = names if count <= _MOST_NAMED else []
        name_ticks(axes, "x", named, FONT_SIZE, side / count)
        name_ticks(axes, "y", named, FONT_SIZE)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(f"accuracy {np.trace(matrix) / max(total, 1):.2%} of {total:,}", fontsize=11)
        axes.spines[:].set_visible(False)
        for border in range(1, count if count <= _MOST_NAMED else 0):
            axes.axhline(border - 0.5, color="white", linewidth=2)
            axes.axvline(border - 0.5, color="white", linewidth=2)
    return figure


def reliability_diagram(
    accuracy: Float[Any, "bins"], confidence: Float[Any, "bins"], examples: Int[Any, "bins"]
) -> "Figure":
    """Accuracy by confidence (Guo et al., 2017), the line of a calibrated classifier, and how many examples there are.

    Args:
        accuracy: share of the examples of each bin that are right; the bins are of equal width, from 0 to 1.
        confidence: their mean confidence.
        examples: how many there are.
    """
    accuracy, confidence, examples = np.asarray(accuracy), np.asarray(confidence), np.asarray(examples)
    bins = len(examples)
    edges = np.linspace(0, 1, bins + 1)
    filled = examples > 0
    error = float(np.abs((accuracy - confidence) * examples).sum() / max(examples.sum(), 1))
    with new_figure(4.8, 5.6, layout="constrained") as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        width = 1 / bins
        centres = edges[:-1] + width / 2
        above.bar(centres[filled], accuracy[filled], width, color=_BLUE, edgecolor="white", label="accuracy")
        gaps = (confidence - accuracy)[filled]
        above.bar(
            *(centres[filled], gaps, width),
            bottom=accuracy[filled],
            facecolor="none",
            edgecolor=_RED,
            hatch="///",
            linewidth=0.8,
            label="gap to the mean confidence",
        )
        above.plot([0, 1], [0, 1], "--", color=_GRAY, linewidth=1, label="calibrated")
        above.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        above.set_title(f"expected calibration error {error:.2%} of {int(examples.sum()):,}")
        above.legend(loc="upper left", frameon=False)
        below.bar(centres, examples, width, color=_GRAY, edgecolor="white")
        below.set(xlabel="confidence", ylabel="examples")
        below.yaxis.set_major_formatter("{x:,.0f}")
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def length_bleu(
    lengths: Sequence[str], bleu: Float[Any, "G"], sentences: Int[Any, "G"], *, overall: float | None = None
) -> "Figure":
    """BLEU of groups of sentences by their length.

    Args:
        lengths: names of the groups, such as "1–7".
        bleu: BLEU of each, from 0 to 100.
        sentences: how many each has.
        overall: BLEU of all together, drawn as a line.

    Raises:
        ValueError: if there are not as many of one as of the others.
    """
    bleu, sentences = np.asarray(bleu), np.asarray(sentences)
    if not len(lengths) == len(bleu) == len(sentences):
        raise ValueError(f"There are {len(lengths):,} groups, but {len(bleu):,} scores and {len(sentences):,} counts.")
    with new_figure(max(4.5, 0.8 * len(lengths) + 1.2), 3.8, lengths, layout="constrained") as figure:
        axes = figure.subplots()
        places = range(len(lengths))
        axes.bar(places, bleu, 0.8, color=_BLUE)
        heights = [float(score) for score in bleu]
        top = 1.08 * max([*heights, overall or 0.0, 1.0])
        for place, score in enumerate(heights):
            inside = score > 0.1 * top  # where no line crosses it
            where: dict[str, Any] = {"va": "top", "color": "white"} if inside else {"va": "bottom", "color": "black"}
            axes.text(place, score + (-0.01 if inside else 0.01) * top, f"{score:.1f}", ha="center", **where)
        axes.set_xticks(places, [f"{name}\n({count:,})" for name, count in zip(lengths, sentences, strict=True)])
        if overall is not None:
            axes.axhline(overall, linestyle="--", color=_RED, linewidth=1, label=f"all: {overall:.1f}", zorder=0)
            figure.legend(loc="outside upper right", frameon=False)
        axes.set(xlabel="tokens of the reference (number of sentences)", ylabel="BLEU")
        axes.set_ylim(0, top)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def rules_by_place(
    broken: Mapping[str, Float[Any, "R P"]], rules: Sequence[str], couplets: Int[Any, "P"] | None = None
) -> "Figure":
    """How often each rule of couplets is broken at each place of the line.

    Args:
        broken: by the name of a set of lower lines, such as "written" and "references", the share of its couplets that
            break each rule at each place, from 0 to 1; NaN where no couplet has the place.
        rules: names of the R rules.
        couplets: how many couplets have each place.

    Raises:
        ValueError: if there are not as many names as rules.
    """
    arrays = {name: np.asarray(shares, np.float32) for name, shares in broken.items()}
    places = next(iter(arrays.values())).shape[1]
    for shares in arrays.values():
        if shares.shape != (len(rules), places):
            raise ValueError(f"Shares of shape {shares.shape} do not fit {len(rules)} rules and {places} places.")
    labels = [str(place + 1) for place in range(places)]
    if couplets is not None:
        labels = [f"{label}\n{count:,}" for label, count in zip(labels, np.asarray(couplets), strict=True)]
    cell = min(
        max(0.5, label_inches([label.split("\n")[-1] for label in labels], _SMALL) + 0.1), _LONGEST_SIDE / places
    )
    left = label_inches(rules, FONT_SIZE) + 0.5
    size = (left + max(cell * places, 2.5) + 0.9, len(arrays) * (0.34 * len(rules) + 0.75) + 0.4)
    with new_figure(*size, [*rules, *arrays], layout="constrained") as figure:
        from matplotlib.colors import PowerNorm

        norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)
        all_axes = figure.subplots(len(arrays), 1, squeeze=False)[:, 0]
        for axes, (name, shares) in zip(all_axes, arrays.items(), strict=True):
            axes.set_facecolor("0.93")  # where no couplet has the place
            image = axes.imshow(shares, aspect="auto", cmap="Reds", norm=norm)
            for (row, column), share in np.ndenumerate(shares):
                colour = "white" if share > _DARK else "black"
                shown = "" if np.isnan(share) else "0" if share == 0 else f"{100 * share:.1f}"
                axes.text(column, row, shown, ha="center", va="center", fontsize=7.5, color=colour)
            name_ticks(axes, "x", labels, _SMALL, cell)
            name_ticks(axes, "y", rules, FONT_SIZE)
            axes.set_title(f"{name}: % of couplets that break a rule", loc="left")
            axes.spines[:].set_visible(False)
        all_axes[-1].set_xlabel("place" if couplets is None else "place, and the couplets that have it")
        figure.colorbar(image, ax=list(all_axes), ticks=[0, 0.1, 0.5, 1], format="{x:.0%}", aspect=30)
    return figure
