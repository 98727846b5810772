"""Where the processes of trials run: on the devices of this machine, or as jobs of Slurm."""

import glob
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformer_jax.experiments.folder import TRIALS, log_file
from transformer_jax.experiments.study import without_password
from transformer_jax.experiments.trial import CORES_VARIABLE, PARENT_VARIABLE, STORAGE_VARIABLE
from transformer_jax.system import UserError

STOP_SECONDS = 120.0
"""A stopped trial may take so long to save before it is killed."""


@runtime_checkable
class Job(Protocol):
    """A process of a trial."""

    name: str
    """Under which a later program finds it; empty if it cannot."""

    def status(self) -> int | None:
        """None while it runs; then its exit status, negative if a signal ended it."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""
        ...

    def wait(self) -> None:
        """Wait for its end after `stop`, not for ever."""
        ...


@runtime_checkable
class Launcher(Protocol):
    """Starts processes of trials."""

    capacity: int
    """Number of processes that may run at a time."""

    def start(self, number: int) -> Job:
        """Start or resume the process of a trial.

        Raises:
            OSError: if its log can't be written.
            RuntimeError: if a cluster refuses it.
        """
        ...

    def find(self, name: str | None) -> Job | None:
        """A job that an earlier program has started and that is not over."""
        ...


class Processes:
    """Child processes, each with devices of its own."""

    def __init__(self, folder: Path, url: str | None, environments: Sequence[Mapping[str, str]]) -> None:
        """Prepare for as many processes as there are environments.

        Args:
            folder: that of the sweep.
            url: the storage of its study.
            environments: variables for each of the processes, see `worker_environments`.
        """
        self.capacity = len(environments)
        self._folder, self._url = folder, url
        self._environments = list(environments)
        self._used: dict[int, _Process] = {}

    def start(self, number: int) -> "_Process":
        """Start or resume the process of a trial on devices that are free."""
        free = next(
            index for index in range(self.capacity) if index not in self._used or self._used[index].status() is not None
        )
        (self._folder / TRIALS).mkdir(exist_ok=True)
        variables = os.environ | self._environments[free] | {PARENT_VARIABLE: str(os.getpid())}
        variables |= {STORAGE_VARIABLE: self._url} if self._url else {}
        with log_file(self._folder, number).open("ab") as output:
            child = subprocess.Popen(  # noqa: S603  (our own command)
                command_of(self._folder, number),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches the sweep, which stops its trials
            )
        self._used[free] = _Process(child)
        return self._used[free]

    def find(self, name: str | None) -> None:
        """None: child processes end with their program."""


class _Process:
    name = ""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child

    def status(self) -> int | None:
        return self._child.poll()

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Submitted:
    """Jobs of submitit: of Slurm, or processes of this machine to try it out."""

    def __init__(
        self, folder: Path, url: str | None, capacity: int, cluster: str, parameters: Mapping[str, str | int]
    ) -> None:
        """Prepare to submit at most `capacity` jobs at a time.

        Args:
            folder: that of the sweep, which all nodes share.
            url: the storage of its study.
            capacity: number of jobs.
            cluster: slurm or local.
            parameters: of submitit's executor, such as `slurm_partition`.

        Raises:
            UserError: if submitit is not installed, there is no such cluster, it does not know a parameter, or the URL
                has a password, which would be written into the files of jobs.
        """
        if ":***@" in without_password(url):
            raise UserError("--storage has a password, which jobs would write down; put it into ~/.pgpass or the like.")
        try:
            import submitit
        except ImportError as error:
            raise UserError("--launcher slurm needs submitit; run pip install 'transformer-jax[sweep]'.") from error
        self.capacity = capacity
        self._folder, self._url, self._cluster = folder, url, cluster
        try:
            self._executor = submitit.AutoExecutor(folder / "jobs", cluster=cluster)
            self._executor.update_parameters(name=folder.name or "sweep", **parameters)
        except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
            raise UserError(f"--launcher {cluster} can't be used ({error}).") from error

    def start(self, number: int) -> "_Submission":
        """Submit the job of a trial."""
        (self._folder / TRIALS).mkdir(exist_ok=True)
        variables = {STORAGE_VARIABLE: self._url} if self._url else {}
        command, log = command_of(self._folder, number), log_file(self._folder, number)
        return _Submission(self._executor.submit(run_command, command, log, variables))

    def find(self, name: str | None) -> "_Submission | None":
        """A job that still waits or runs; of submitit's jobs on this machine none can be found."""
        if not name or self._cluster != "slurm":
            return None
        import submitit

        job: Any = submitit.SlurmJob(self._folder / "jobs", name)
        return None if job.done(force_check=True) else _Submission(job)


def run_command(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> int:
    """What a job does: run the process of a trial, pass on that it is to end, and return its status."""
    with log.open("ab") as output:
        child = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=output)  # noqa: S603
    # Of a time limit or a preemption Slurm warns by SIGUSR2; the trial saves, and the status says so.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: child.terminate())
    return child.wait()


class _Submission:
    def __init__(self, job: Any) -> None:
        self._job = job
        self.name = str(job.job_id)

    def status(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # of any kind: the job was cancelled, preempted or lost
            return -signal.SIGKILL

    def stop(self) -> None:
        if not self._job.done():
            self._job.cancel()

    def wait(self) -> None:
        """A cluster ends its jobs in its own time; what they have saved is found the next time."""


def command_of(folder: Path, number: int) -> list[str]:
    """The command line of the process of a trial."""
    return [sys.executable, "-m", "transformer_jax.experiments.trial", str(folder), str(number)]


def worker_environments(workers: int | None, devices: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Variables that give each of several processes its own devices.

    Args:
        workers: number of processes; default: one for each GPU or TPU chip, or else one.
        devices: names of the devices by kind: gpu, tpu, cpu; see `local_devices`.

    Raises:
        UserError: if TPU chips are too few: a chip serves one process.
    """
    gpus, chips, cores = (list(devices.get(kind, ())) for kind in ("gpu", "tpu", "cpu"))
    count = workers or len(chips) or len(gpus) or 1
    if chips:
        if count > len(chips):
            raise UserError(f"--workers is {count}, but there are {len(chips)} TPU chips, and one serves one process.")
        bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return [bounds | {"TPU_VISIBLE_CHIPS": chip} for chip in chips[:count]] if len(chips) > 1 else [{}]
    if gpus:
        shared = -(-count // len(gpus))  # processes on the fullest GPU
        own = [gpus[index::count] if count < len(gpus) else [gpus[index % len(gpus)]] for index in range(count)]
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / shared:.2f}"} if shared > 1 else {}
        return [memory | {"CUDA_VISIBLE_DEVICES": ",".join(names)} for names in own]
    if count == 1 or len(cores) < count:
        return [{} for _ in range(count)]
    return [{CORES_VARIABLE: ",".join(cores[index::count])} for index in range(count)]


def local_devices() -> dict[str, list[str]]:
    """Names of the GPUs, TPU chips and CPU cores that this program may use, without starting JAX, which takes them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    cores = getattr(os, "sched_getaffinity", lambda _: range(0))(0)
    found = {"cpu": [str(core) for core in sorted(cores)]}
    if not platforms or "cuda" in platforms or "gpu" in platforms:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        files = [path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", path)]
        names = [str(index) for index in range(len(files))]  # CUDA's numbers, which begin with 0 in containers too
        found["gpu"] = names if visible is None else [name for name in visible.split(",") if name and name != "-1"]
    if not platforms or "tpu" in platforms:
        files = [*glob.glob("/dev/accel*"), *glob.glob("/dev/vfio/[0-9]*")]
        found["tpu"] = [str(index) for index in range(len(files))]
    return found
