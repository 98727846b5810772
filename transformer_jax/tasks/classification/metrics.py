"""Scores of a classifier: accuracy, F1, calibration, and its confusion matrix as a table or a picture."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from rich.cells import cell_len

from transformer_jax.system import UserError
from transformer_jax.system.files import as_path
from transformer_jax.system.output import Output, write_output

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of a classifier; shares are from 0 to 1, and a share of nothing is 0."""

    class_names: tuple[str, ...]
    accuracy: float
    macro_f1: float
    """Mean F1 of the classes that occur or are predicted, each counting the same."""
    expected_calibration_error: float
    precision: Float[np.ndarray, "C"]
    """Per class: the share of its predictions that are right."""
    recall: Float[np.ndarray, "C"]
    """Per class: the share of its examples that are found."""
    f1: Float[np.ndarray, "C"]
    """Per class: harmonic mean of precision and recall."""
    support: Int[np.ndarray, "C"]
    """Per class: how many examples it has."""
    confusion: Int[np.ndarray, "C C"]
    """Examples by their class (rows) and the predicted one (columns)."""


def classification_scores(
    labels: Int[np.ndarray, "n"], probabilities: Float[np.ndarray, "n C"], class_names: Sequence[str]
) -> ClassificationScores:
    """Scores of predicted probabilities; the prediction is the most probable class, the first of equals.

    Args:
        labels: number of the right class of each example, from 0.
        probabilities: probability of each class, for each example.
        class_names: in the order of their numbers.

    Raises:
        ValueError: if there are no examples, or labels, probabilities and names don't fit together.
    """
    examples, classes = probabilities.shape
    if len(labels) != examples or not examples:
        raise ValueError(f"{examples:,} predictions cannot be scored against {len(labels):,} labels.")
    if len(class_names) != classes:
        raise ValueError(f"There are {classes:,} classes, but {len(class_names):,} names of classes.")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Labels must be from 0 to {classes - 1:,}, but are from {labels.min():,} to {labels.max():,}."
        )
    predictions = probabilities.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, predictions), 1)
    right, support = confusion.diagonal(), confusion.sum(axis=1)
    occurrences = support + confusion.sum(axis=0)
    f1 = _shares(2 * right, occurrences)
    return ClassificationScores(
        class_names=tuple(class_names),
        accuracy=float(right.sum() / examples),
        macro_f1=float(f1[occurrences > 0].mean()),
        expected_calibration_error=expected_calibration_error(probabilities.max(axis=1), predictions == labels),
        precision=_shares(right, confusion.sum(axis=0)),
        recall=_shares(right, support),
        f1=f1,
        support=support,
        confusion=confusion,
    )


def expected_calibration_error(confidence: Float[np.ndarray, "n"], correct: Bool[np.ndarray, "n"]) -> float:
    """By how much confidence differs from accuracy (Guo et al., 2017), from 0 to 1.

    The mean, over 15 bins of equal width weighted by their examples, of the difference between a bin's accuracy and
    its mean confidence.

    Args:
        confidence: probability of the predicted class; a bin holds those above its lower edge, up to the upper one.
        correct: whether that class was right.
    """
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence.astype(np.float64), minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def _shares(part: Int[np.ndarray, "C"], whole: Int[np.ndarray, "C"]) -> Float[np.ndarray, "C"]:
    return part / np.maximum(whole, 1)


PICTURE_SUFFIXES = (".png", ".svg")
_CORNER = "true \\ predicted"
_LONG_NAME = 10
_LONGEST_SIDE = 20.0  # inches
_MOST_NUMBERED, _MOST_NAMED = 25, 60  # classes; beyond, nobody could read them
_FONTS = (
    "DejaVu Sans",
    # For Chinese names, whichever of these is installed.
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
)


def confusion_table(matrix: Int[np.ndarray, "C C"], names: Sequence[str]) -> str:
    """A confusion matrix as aligned lines of text, without a newline at the end.

    Args:
        matrix: examples by their class (rows) and the predicted one (columns).
        names: names of the classes; characters may be wide, as in Chinese.

    Raises:
        ValueError: if there are not as many names as classes.
    """
    _check_names(matrix, names)
    rows = [[_CORNER, *names]]
    rows += [[name, *(f"{count:,}" for count in counts)] for name, counts in zip(names, matrix, strict=True)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        padded = [first + " " * (widths[0] - cell_len(first))]
        padded += [" " * (width - cell_len(cell)) + cell for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(padded))
    return "\n".join(lines)


def save_confusion_picture(path: str | Path, matrix: Int[np.ndarray, "C C"], names: Sequence[str]) -> None:
    """Draw a confusion matrix: each cell with its count and its share of the row, which also sets its colour.

    Beyond 25 classes the cells stay without numbers, beyond 60 the rows and columns without names.
    Names in a script that no installed font has become boxes in a PNG; an SVG leaves the fonts to its viewer.

    Args:
        path: the picture; its suffix selects PNG or SVG.
        matrix: examples by their class (rows) and the predicted one (columns).
        names: names of the classes.

    Raises:
        UserError: if the name ends otherwise, the file cannot be written, or matplotlib is not installed.
        ValueError: if there are not as many names as classes.
    """
    _check_names(matrix, names)
    check_picture(path)
    path = Path(path)
    content = _draw(matrix, names, path.suffix.lower().removeprefix("."))
    write_output(path, content)


def check_picture(path: str | Path) -> None:
    """Do nothing, unless there could not be a picture of this name; to be asked before the work that it shows.

    Raises:
        UserError: if the name ends otherwise than `PICTURE_SUFFIXES`, or the file cannot be written.
    """
    path = as_path(path)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{path} cannot be drawn; name a picture that ends in {' or '.join(PICTURE_SUFFIXES)}.")
    Output(str(path))


def _draw(matrix: Int[np.ndarray, "C C"], names: Sequence[str], form: str) -> bytes:
    try:
        import matplotlib  # here and not above, as it is slow to import
        from matplotlib import font_manager
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("Pictures need matplotlib; install it with `pip install matplotlib`.") from error

    count, total = len(names), int(matrix.sum())
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.5, vmin=0.0, vmax=1.0)  # so that a class's few mistakes show beside what it gets right
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style: dict[Any, Any] = {
        "font.family": [font for font in _FONTS if font in installed],
        "text.parse_math": False,  # a name may hold dollar signs
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "confusion",  # the same matrix gives the same file
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        side = min(0.95 * count, _LONGEST_SIDE - 1.8)
        figure = Figure(figsize=(1.8 + side, 1.4 + side), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", norm=norm)
        for (row, column), share in np.ndenumerate(shares) if count <= _MOST_NUMBERED else ():
            colour = "white" if norm(share) > 0.6 else "black"
            number = f"{matrix[row, column]:,}"
            axes.text(column, row, number, ha="center", va="bottom", fontsize=11, fontweight="bold", color=colour)
            axes.text(column, row + 0.08, f"{share:.1%}", ha="center", va="top", fontsize=8, color=colour)
        named = range(count if count <= _MOST_NAMED else 0)
        axes.set_xticks(named, [names[place] for place in named])
        axes.set_yticks(named, [names[place] for place in named])
        if count > _MOST_NUMBERED or max(map(cell_len, names)) > _LONG_NAME:
            axes.tick_params("x", rotation=90)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(f"accuracy {np.trace(matrix) / max(total, 1):.2%} of {total:,}", fontsize=11)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for border in range(1, count if count <= _MOST_NAMED else 0):
            axes.axhline(border - 0.5, color="white", linewidth=2)
            axes.axvline(border - 0.5, color="white", linewidth=2)
        content = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(content, format=form, bbox_inches="tight", metadata=metadata)
    return content.getvalue()


def _check_names(matrix: Int[np.ndarray, "C C"], names: Sequence[str]) -> None:
    if len(names) != len(matrix):
        raise ValueError(f"There are {len(matrix):,} classes, but {len(names):,} names of classes.")
