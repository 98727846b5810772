"""Promise: memory stays flat over 10,000 steps of training."""

import os
from pathlib import Path

import pytest

from tests.reliability.tiny_run import make_config
from transformer_jax.training import loop, run

STATM = Path("/proc/self/statm")
STEPS, SETTLED = 10_000, 1_000
ALLOWED = 60.0
"""MB that the process may grow by after the first `SETTLED` steps."""


def resident():
    pages = int(STATM.read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.mark.soak
@pytest.mark.skipif(not STATM.exists(), reason="only Linux tells of the memory in use")
def test_memory_stays_flat_over_ten_thousand_steps(tmp_path, few_records, monkeypatch):
    """With 100 evaluations and checkpoints, and 1,000 lines in the log."""
    log, used = loop._log, {}

    def measure(run, writer, step, *values):
        log(run, writer, step, *values)
        used[step] = resident()

    monkeypatch.setattr(loop, "_log", measure)
    intervals = {"log_every": STEPS // 1000, "eval_every": STEPS // 100, "checkpoint_every": STEPS // 100}
    run(make_config(num_steps=STEPS, num_samples=0, patience=0, metric="loss", **intervals), tmp_path / "run")
    growth = used[STEPS] - used[SETTLED]
    print(f"{used[SETTLED]:.0f} MB after {SETTLED:,} steps, {growth:+.0f} MB after {STEPS:,}")
    assert growth < ALLOWED, used
