"""The step of `benchmarks.synthetic` in PyTorch: `nn.Transformer`, its fused attention, packed rows under a mask."""

import time
from collections.abc import Callable

import torch

from benchmarks.synthetic import StepSize, batch_of
from benchmarks.torch_model import drop_as_ours, make_model
from benchmarks.workload import Shape

LABEL_SMOOTHING = 0.1


def build(size: StepSize, threads: int, compiled: bool) -> Callable[[], float]:
    """Measures the seconds of a step with our dropout, under autocast if the dtype is bfloat16."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(shape_of(size), LABEL_SMOOTHING).to(device)
    drop_as_ours(model)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, betas=(0.9, 0.98), eps=1e-9, fused=True)
    arrays = batch_of(size)._asdict()
    batch = {name: torch.from_numpy(array).long().to(device) for name, array in arrays.items()}
    loss_of = torch.compile(model.loss, dynamic=False) if compiled else model.loss
    half = size.model.dtype == "bfloat16"

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of(batch, True, LABEL_SMOOTHING)
        loss.backward()
        optimizer.step()
        loss.item()
        return time.perf_counter() - started

    def measure() -> float:
        step()  # not timed, as in `benchmarks.roofline.build_step`
        return step()

    step()
    return measure


def shape_of(size: StepSize) -> Shape:
    """Sizes of the model, for the PyTorch models."""
    model = size.model
    names = ("d_model", "num_heads", "d_ff", "num_encoder_layers", "num_decoder_layers", "dropout_rate", "norm_first")
    values = {name: getattr(model, name) for name in names}
    return Shape(**values, vocab_size=model.target_vocab_size, num_classes=0)
