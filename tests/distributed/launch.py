"""Start `train.py`, or another program, in several processes on the loopback."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from transformer_jax.tasks.translation.sources import Numerals

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 240
"""Time limit of a process."""
FLAGS = [
    *("--config.data.name=text", "--config.data.max_length=48", "--config.data.row_length=48"),
    *("--config.data.tokens_per_batch=336", "--config.tokenizer.vocab_size=60"),
    *("--config.model.d_model=16", "--config.model.num_heads=2", "--config.model.d_ff=16"),
    *("--config.model.num_encoder_layers=1", "--config.model.num_decoder_layers=1", "--config.model.dropout_rate=0.1"),
    *("--config.training.num_steps=20", "--config.training.log_every=1", "--config.training.eval_every=10"),
    *("--config.training.checkpoint_every=5", "--config.training.keep_checkpoints=10"),
    *("--config.training.average_last=2", "--config.training.ema_decay=0.9", "--config.training.metric=loss"),
    *("--config.decoding.batch_size=8", "--config.decoding.max_extra_tokens=2", "--config.decoding.beam_size=1"),
]
"""A tiny run of 20 steps. The seven rows of a batch do not divide among two devices."""


@dataclass
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str
    seconds: float


def text_files(folder: Path, train: int = 150, validation: int = 11) -> list[str]:
    """Write a small data set; returns the options that name it."""
    options = []
    for split, size in (("train", train), ("validation", validation)):
        sides = zip(*Numerals("de", "en", split)[:size], strict=True)
        for side, sentences in zip(("source", "target"), sides, strict=True):
            path = folder / f"{split}.{side}"
            path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
            options.append(f"--config.data.{split}_{side}={path}")
    return options


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket(socket.AF_INET6) as found:
        found.bind(("", 0))
        return found.getsockname()[1]


class Processes:
    """Processes that together run one program."""

    def __init__(self, command: list[str], count: int, *, devices: int = 1, own: dict[int, list[str]] | None = None):
        """Start them.

        Args:
            command: arguments of Python; with several processes, the options that place each are added.
            count: number of processes.
            devices: number of devices of each.
            own: further options of single processes, by index.
        """
        self.started = time.monotonic()
        flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        }
        place = [] if count == 1 else [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
        self.processes = []
        for index in range(count):
            number = [] if count == 1 else [f"--process_id={index}"]
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *command, *place, *number, *(own or {}).get(index, [])],
                    cwd=ROOT,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait(self, seconds: float = SECONDS) -> list[Ended]:
        """How they ended, in order; all are killed after `seconds`."""
        try:
            ended = []
            for process in self.processes:
                left = max(self.started + seconds - time.monotonic(), 0.1)
                out, err = process.communicate(timeout=left)
                ended.append(Ended(process.returncode, out, err, time.monotonic() - self.started))
            return ended
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill those that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def assert_refused(ended: list[Ended], message: str) -> None:
    """Assert that all ended with status 2 and one sentence that contains `message`."""
    assert [process.status for process in ended] == [2] * len(ended), ended
    for process in ended:
        assert process.err.count("transformer-jax: error:") == 1, process.err
        assert "Traceback" not in process.err, process.err
        assert message in process.err, process.err


def train(workdir: Path, data: list[str], count: int, *, more: list[str] | None = None, **options) -> Processes:
    """Start or resume the tiny run."""
    return Processes(["train.py", *FLAGS, *data, f"--workdir={workdir}", *(more or [])], count, **options)
