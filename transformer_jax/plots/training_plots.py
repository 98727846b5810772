"""Pictures of training: schedules of the learning rate, and curves of one or several runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer_jax.plots.drawing import FONT_SIZE, label_inches, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 7.5  # inches
_MOST_NAMED = 20  # curves; beyond, nobody could tell their colours apart
_MOST_MARKED = 50  # points


def learning_curves(
    curves: Mapping[str, tuple[Any, Any]], *, metric: str = "", title: str = "", log_scale: bool = False
) -> "Figure":
    """Curves of a metric over steps, a line for each run; a value that is not finite leaves a gap.

    Beyond 20 curves there is no legend, and colours follow the order of the curves.

    Args:
        curves: by the name of the run, its steps and the values at them, two sequences of numbers.
        metric: name of the y axis.
        title: of the picture.
        log_scale: whether the y axis is logarithmic.

    Raises:
        ValueError: if a curve has not as many values as steps.
    """
    return _curves(curves, "step", metric, title, log_scale)


def learning_rates(schedules: Mapping[str, tuple[Any, Any]], *, title: str = "") -> "Figure":
    """Learning rates over steps, a line for each schedule, with its peak.

    Args:
        schedules: by name, steps and learning rates, such as `(steps, noam_schedule(512, 4000)(steps))`.
        title: of the picture.

    Raises:
        ValueError: if a schedule has not as many rates as steps.
    """
    figure = _curves(schedules, "step", "learning rate", title, log_scale=False)
    [axes] = figure.axes
    for line in axes.lines:
        steps, rates = np.asarray(line.get_xdata()), np.asarray(line.get_ydata(), float)
        if len(rates) and np.isfinite(rates).any():
            peak = int(np.nanargmax(rates))
            axes.plot(steps[peak], rates[peak], "o", markersize=4, color=line.get_color(), label="_peak")
            where = steps[peak], rates[peak]
            axes.annotate(f"{rates[peak]:.3g}", where, (6, 2), textcoords="offset points", fontsize="small")
    axes.margins(y=0.08)
    return figure


def _curves(curves: Mapping[str, tuple[Any, Any]], x: str, y: str, title: str, log_scale: bool) -> "Figure":
    has_legend = len(curves) <= _MOST_NAMED and any(curves)
    columns = max(1, min(4, int(_WIDTH / (label_inches([*curves], FONT_SIZE) + 0.6))))
    height = 3.9 + (0.21 * -(-len(curves) // columns) if has_legend else 0.0)
    with new_figure(_WIDTH, height, [*curves, y, title], layout="constrained") as figure:
        import matplotlib
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        colours = matplotlib.colormaps["tab10" if len(curves) <= 10 else "tab20" if len(curves) <= 20 else "viridis"]
        for place, (name, (steps, values)) in enumerate(curves.items()):
            steps, values = np.asarray(steps, float), np.asarray(values, float)
            if steps.shape != values.shape or steps.ndim != 1:
                raise ValueError(f"The curve {name!r} has {steps.size:,} steps, but {values.size:,} values.")
            values = np.where(np.isfinite(values), values, np.nan)
            marker = "." if len(values) <= _MOST_MARKED else ""
            colour = colours(place if len(curves) <= _MOST_NAMED else place / (len(curves) - 1))
            axes.plot(steps, values, marker=marker, linewidth=1.3, color=colour, label=_label(name))
        axes.set(xlabel=x, ylabel=y, title=title, yscale="log" if log_scale else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        if log_scale:
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        if has_legend:
            figure.legend(loc="outside lower left", ncols=columns, frameon=False)
    return figure


def _label(name: str) -> str:
    # matplotlib leaves a label that begins with an underscore out of the legend.
    return f"\u200b{name}" if name.startswith("_") else name
