"""What a sweep found: a ranking, a CSV file, pictures, and the best config."""

import csv
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_jax.config import from_config_dict
from transformer_jax.experiments.folder import run_folder
from transformer_jax.experiments.study import Study
from transformer_jax.experiments.sweep import minutes_of, ranked, score_of, state_of
from transformer_jax.system import UserError
from transformer_jax.system.files import write_atomically
from transformer_jax.system.runtime import reason_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

RESULTS_FILE = "results.csv"
PICTURES = "pictures"
BEST = "best"


def write_report(study: Study) -> list[str]:
    """Write `results.csv`, `best/config.json` and `pictures/` into the folder of the sweep.

    Returns:
        Lines that say what there is, and what could not be drawn.

    Raises:
        UserError: if a file can't be written.
    """
    folder, sweep = study.folder, study.sweep
    trials = ranked(study.trials(), sweep.minimize)
    lines = [
        f"Trial {trial.number} failed: {trial.user_attrs.get('error')}"
        for trial in trials
        if state_of(trial) == "failed"
    ]
    try:
        write_atomically(folder / RESULTS_FILE, results(study, trials).encode())
        lines.append(f"All trials: {folder / RESULTS_FILE}")
        lines += _write_pictures(study, folder / PICTURES)
        best = next((trial for trial in trials if state_of(trial) == "finished"), None)
        if best is not None:
            (folder / BEST).mkdir(exist_ok=True)
            config = from_config_dict(sweep.config_of(best.params)).to_dict()
            path = folder / BEST / "config.json"
            write_atomically(path, (json.dumps(config, indent=2) + "\n").encode())
            lines.append(
                f"Best: trial {best.number}, {sweep.metric} {best.value:.4g}, {run_folder(folder, best.number)}"
            )
            lines.append(f"Train with its config: transformer-jax train --config {path} --workdir DIR")
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); make room and rerun with --report.") from error
    return lines


def results(study: Study, trials: "list[FrozenTrial]") -> str:
    """The trials as CSV, by rank: number, state, metric, values, steps, minutes, and the sentence of an error."""
    sweep = study.sweep
    fields = sweep.fields
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", sweep.metric, *fields, "step", "minutes", "error"])
    for trial in trials:
        score = score_of(trial, sweep.minimize)
        writer.writerow(
            [
                trial.number,
                state_of(trial),
                "" if score is None else repr(score),
                *(trial.params.get(field, "") for field in fields),
                "" if trial.last_step is None else trial.last_step,
                f"{minutes_of(trial):.2f}",
                trial.user_attrs.get("error", "") if state_of(trial) == "failed" else "",
            ]
        )
    return text.getvalue()


def _write_pictures(study: Study, folder: Path) -> list[str]:
    """Draw what there is enough for; returns lines about it."""
    complete = [trial for trial in study.trials() if state_of(trial) == "finished"]
    if not complete:
        return ["There are no pictures, as no trial has finished"]
    try:
        import matplotlib

        matplotlib.use("agg")
        from optuna import importance, visualization
    except ImportError as error:
        return [f"There are no pictures ({error}); run pip install 'transformer-jax[sweep]'"]
    from transformer_jax.plots import learning_curves

    draw: Any = visualization.matplotlib
    name = study.sweep.metric.replace("_", " ")
    # The only evaluator that needs no further package.
    evaluator = importance.PedAnovaImportanceEvaluator()
    pictures: Mapping[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study.optuna, target_name=name),
        "importance": lambda: draw.plot_param_importances(study.optuna, evaluator=evaluator, target_name=name),
        "parallel_coordinates": lambda: draw.plot_parallel_coordinate(study.optuna, target_name=name),
        "slices": lambda: draw.plot_slice(study.optuna, target_name=name),
        "learning_curves": lambda: learning_curves(_curves(study), metric=name),
    }
    folder.mkdir(exist_ok=True)
    lines = [f"Pictures: {folder}"]
    for each, plot in pictures.items():
        try:
            with warnings.catch_warnings(), matplotlib.rc_context({"savefig.dpi": 150}):  # Optuna sets a style
                warnings.simplefilter("ignore")
                _save(plot(), folder / f"{each}.png")
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            lines.append(f"  {each} needs more trials ({reason_of(error)})")
    return lines


def _curves(study: Study) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and scores of the evaluations of each trial."""
    told = {f"trial {trial.number}": trial.intermediate_values for trial in study.trials()}
    return {name: (list(values), list(values.values())) for name, values in told.items() if values}


def _save(drawn: Any, path: Path) -> None:
    """Save a figure, or that of some axes."""
    import matplotlib.pyplot as plt
    import numpy as np

    from transformer_jax.plots import save_picture

    figure = drawn if hasattr(drawn, "savefig") else np.ravel(drawn)[0].figure
    if np.size(drawn) > 1:  # slices, a column each
        figure.set_size_inches(4.5 * np.size(drawn), 4.5)
    for axes in figure.axes:
        _tidy(axes)
    save_picture(path, figure)
    plt.close(figure)


def _tidy(axes: Any) -> None:
    """Mend what Optuna's pictures leave hard to read."""
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale == "log":  # within a decade there is no label, and the minor ones run into each other
            axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    for lines in axes.collections:
        if isinstance(lines, LineCollection) and lines.colorbar is not None:  # parallel coordinates
            # The worst are white on white otherwise, and the colour bar hides numbers of the last axis.
            lines.set_cmap("viridis" if lines.get_cmap().name.endswith("_r") else "viridis_r")
            left, *rest = lines.colorbar.ax.get_position().bounds
            lines.colorbar.ax.set_position((left + 0.08, *rest))
