"""Where the values of a run are followed beside its log: TensorBoard, Weights & Biases, MLflow and Trackio."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from transformer_jax.training.mirror import Mirror

KINDS = ("train", "evaluation", "final")
"""Kinds of lines that trackers get, in the order of those of one step."""
PROJECT = "transformer-jax"
"""Project, or experiment, that runs belong to unless the tracker's own environment variable names another."""
Position = tuple[int, int]
"""Of a line in the log: its step, and the number of its kind."""
START: Position = (-1, 0)
"""Before all lines."""


class Record(NamedTuple):
    """The numbers of one line of the log."""

    kind: str
    step: int
    values: Mapping[str, float]
    """By name, such as `train/loss`; all are finite."""
    time: float
    """Seconds since 1970."""

    @classmethod
    def of(cls, kind: str, step: int, values: Mapping[str, Any], time: float) -> "Record":
        """The record of a line with these values, without those that are not finite numbers."""
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        return cls(kind, step, numbers, time)

    @property
    def position(self) -> Position:
        """Its place in the log."""
        return self.step, KINDS.index(self.kind)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker gets to know of a run."""

    name: str
    id: str
    """Stays the same when the run resumes; of letters and digits."""
    config: Mapping[str, Any]
    """All fields, in nested dicts."""
    mirror: Mirror
    """The folder of the run."""
    first_step: int
    """Number of updates made before this process."""
    say: Callable[[str], None]
    """Shows a line on the terminal."""


class Tracker(Protocol):
    """Takes the records of a run; made from a `TrackedRun`. Each method may raise anything."""

    package: ClassVar[str]
    """The package that it needs, imported when the tracker is made."""

    def log(self, record: Record) -> None:
        """Take a record. None comes twice, and none after one of a later position."""

    def flush(self) -> None:
        """Give on what was taken so far, as far as the package can."""

    def close(self) -> None:
        """Give on everything, and say that the process has ended."""


class TensorBoard:
    """An event file in `tensorboard/`, which each process rewrites with the whole log."""

    package: ClassVar[str] = "tensorboardX"

    def __init__(self, run: TrackedRun) -> None:
        # Importing it takes seconds where PyTorch is installed. Its SummaryWriter can't be flushed: that would not wait
        # for the queue in front of the file.
        from tensorboardX.event_file_writer import EventsWriter

        run.mirror.remove("tensorboard/events.out.tfevents.*")
        # Absolute: to tensorboardX, a path that begins with gs: or s3: is not of this machine.
        folder = (run.mirror.local / "tensorboard").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        # A TensorBoard that runs forgets what it has read from the first of these steps on, as those lines come again.
        # The last one is where this process begins.
        for step in sorted({1, run.first_step + 1}):
            self._start(step)
        self.flush()

    def _start(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        session = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=session))

    def log(self, record: Record) -> None:
        """Write an event with a scalar per value."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.summary import scalar

        summary = Summary(value=[scalar(name, value).value[0] for name, value in record.values.items()])
        self._writer.write_event(Event(wall_time=record.time, step=record.step, summary=summary))

    def flush(self) -> None:
        """Hand all events to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, in the project WANDB_PROJECT. With WANDB_MODE=offline, it is a local folder."""

    package: ClassVar[str] = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # else it may ask for a login, above the bar
        quiet: dict[str, Any] = {"silent": True, "console": "off"}
        if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:
            quiet["x_transaction_log_flush_interval"] = 1.0  # seconds; by default the last 15 are lost with the process
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=run.name,
            config=dict(run.config),
            allow_val_change=True,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**quiet),
        )
        # Its own step can't be that of a line, as there may be several of one step.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._has_ended = False
        if not self._run.offline:
            run.say(f"wandb: {self._run.url}")

    def log(self, record: Record) -> None:
        """Log a row, with the column `step`."""
        self._run.log({"step": record.step, **record.values})
        self._has_ended = record.kind == "final"

    def flush(self) -> None:
        """Do nothing: it sends what it has by itself."""

    def close(self) -> None:
        """End the run; as failed if it was interrupted."""
        self._run.finish(exit_code=0 if self._has_ended else 1)


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME."""

    package: ClassVar[str] = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        tag = "transformer_jax.run"
        found = self._client.search_runs([experiment], f"tags.`{tag}` = '{run.id}'", max_results=1)
        own = found[0] if found else self._client.create_run(experiment, run_name=run.name, tags={tag: run.id})
        self._id, known = own.info.run_id, own.data.params
        if found:
            self._client.update_run(self._id, status="RUNNING")
        params = [Param(name, value) for name, value in _flat(run.config).items() if name not in known]
        for at in range(0, len(params), 100):  # it takes no more at a time
            self._client.log_batch(self._id, params=params[at : at + 100])
        self._status = "KILLED"

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        try:
            return str(self._client.create_experiment(name) if found is None else found.experiment_id)
        except MlflowException:  # another run may have made it just now
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def log(self, record: Record) -> None:
        """Log a metric per value."""
        from mlflow.entities import Metric

        milliseconds = round(record.time * 1000)
        metrics = [Metric(name, value, milliseconds, record.step) for name, value in record.values.items()]
        for at in range(0, len(metrics), 1000):  # it takes no more at a time
            self._client.log_batch(self._id, metrics=metrics[at : at + 1000])
        self._status = "FINISHED" if record.kind == "final" else "KILLED"

    def flush(self) -> None:
        """Do nothing: what is logged is stored."""

    def close(self) -> None:
        """End the run; as killed if it was interrupted."""
        self._client.set_terminated(self._id, self._status)


class Trackio:
    """A run of Trackio, in its local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

    package: ClassVar[str] = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        # It knows runs by their names.
        name = f"{run.name}-{run.id}"
        self._run = trackio.init(project=PROJECT, name=name, config=dict(run.config), resume="allow", embed=False)

    def log(self, record: Record) -> None:
        """Log a row."""
        self._run.log(dict(record.values), step=record.step)

    def flush(self) -> None:
        """Do nothing: it stores what it has twice a second."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
"""Names in `config.training.trackers`, and the `Tracker` of each."""


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The fields of nested dicts by names such as `optim.lr`."""
    fields: dict[str, str] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        fields |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: str(value)}
    return fields
