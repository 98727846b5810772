"""Training of the PyTorch models, in measurable pieces."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.torch_model import drop_as_ours, make_model
from benchmarks.workload import (
    RANDOM_BATCH,
    Tally,
    Workload,
    measured,
    our_batches,
    padded,
    random_batches,
    read_examples,
)

WARMUP = 0.1
"""Share of a run with a rising learning rate."""


class TorchTrainer:
    """A model, its optimizer and its batches."""

    def __init__(
        self, workload: Workload, *, packed: bool = False, compiled: bool = False, our_dropout: bool = False
    ) -> None:
        """Read the token ids and initialize the parameters.

        Args:
            workload: data and model.
            packed: train on our batches instead of random ones padded to the longest.
            compiled: use `torch.compile`.
            our_dropout: apply dropout as we do instead of as nn.Transformer does.
        """
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.workload, self.packed = workload, packed
        self.examples = read_examples(workload.examples_file)
        self.model = make_model(workload.shape, workload.label_smoothing).to(self.device)
        if our_dropout:
            drop_as_ours(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, betas=(0.9, 0.98), eps=1e-9, fused=True)
        self.batches: Iterator[Any] = (our_batches if packed else random_batches)(workload, self.examples.train)
        self._loss: Callable[..., Tensor] = self.model.loss
        if compiled:
            self._loss = torch.compile(self.model.loss, dynamic=False)

    def train(self, num_steps: int) -> Tally:
        """Take `num_steps` steps."""
        self.model.train()
        tally = Tally()
        started = time.perf_counter()
        for _ in range(num_steps):
            batch = next(self.batches)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(self.tensors(batch), self.packed, self.workload.label_smoothing)
            loss.backward()
            self.optimizer.step()
            tally.add(batch)
        loss.item()
        tally.seconds = time.perf_counter() - started
        return tally

    @torch.inference_mode()
    def validation_loss(self) -> float:
        """Cross-entropy per token on the validation data, without smoothing."""
        self.model.eval()
        examples = sorted(self.examples.validation, key=lambda example: len(example[1]))
        total = count = 0.0
        for start in range(0, len(examples), RANDOM_BATCH):
            batch = padded(self.workload, examples[start : start + RANDOM_BATCH])
            tokens = int(np.count_nonzero(batch.target_segments))
            total += self.model.loss(self.tensors(batch), False, 0.0).item() * tokens
            count += tokens
        return total / count

    def tensors(self, batch: Any) -> dict[str, Tensor]:
        """Arrays of a batch, by name."""
        return {name: torch.from_numpy(array).long().to(self.device) for name, array in batch._asdict().items()}


def limit_threads(threads: int) -> None:
    """Limit the threads of PyTorch's operations."""
    torch.set_num_threads(threads)


def trainer(workload: Workload, threads: int, num_steps: int, options: dict[str, bool]) -> Callable[[], Tally]:
    """Factory for a worker: `num_steps` steps per measurement; `options` are those of `TorchTrainer`."""
    limit_threads(threads)
    return measured(TorchTrainer(workload, **options).train, num_steps)


def learner(
    workload: Workload, threads: int, peak: float, minutes: float, points: int
) -> Callable[[], tuple[float, float, int]]:
    """Factory for a worker: each measurement continues training; returns total minutes, validation loss, total steps.

    Args:
        workload: data and model.
        threads: of PyTorch's operations.
        peak: peak learning rate.
        minutes: length of the run.
        points: number of measurements.
    """
    limit_threads(threads)
    theirs = TorchTrainer(workload)
    spent, taken, points_so_far = 0.0, 0, 0

    def measure() -> tuple[float, float, int]:
        nonlocal spent, taken, points_so_far
        points_so_far += 1
        while spent < 60 * minutes * points_so_far / points:
            for group in theirs.optimizer.param_groups:
                group["lr"] = learning_rate(peak, spent / (60 * minutes))
            spent += theirs.train(1).seconds
            taken += 1
        return spent / 60, theirs.validation_loss(), taken

    return measure


def learning_rate(peak: float, done: float) -> float:
    """Linear up to `peak` over a tenth of the run, then half a cosine to 0.

    Args:
        peak: peak learning rate.
        done: elapsed share of the run, 0 to 1.
    """
    if done < WARMUP:
        return peak * max(done, 0.01) / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * min((done - WARMUP) / (1 - WARMUP), 1.0)))
