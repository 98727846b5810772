"""Promise 15: memory stays flat over 10,000 steps of training."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reliability import tiny_run

ROOT = Path(tiny_run.__file__).resolve().parent.parent.parent
STEPS, SETTLED = 10_000, 2_000
ALLOWED = 20.0
"""MiB that the process may grow by after `SETTLED` steps."""
TRAINED = f"""
import sys
from tests.reliability.tiny_run import load_few, make_config
from transformer_jax.system.runtime import prepare
from transformer_jax.tasks.translation import sources
from transformer_jax.training import run

sources.load_pairs = load_few
prepare()
intervals = dict(log_every=20, eval_every=500, checkpoint_every=250, keep_checkpoints=2)
run(make_config(num_steps={STEPS}, patience=0, metric="loss", **intervals), sys.argv[1])
"""


def resident(pid):
    """MiB of memory in use by a process, or None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:")), None)


def last_step(log):
    lines = log.read_bytes().rpartition(b"\n")[0].splitlines() if log.exists() else []
    return next((step for line in reversed(lines) if (step := json.loads(line).get("step"))), 0)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/PID/status")
def test_memory_stays_flat_over_ten_thousand_steps(tmp_path):
    """With 500 lines in the log, 20 evaluations and 40 checkpoints."""
    used = {}
    with (tmp_path / "output").open("wb") as output:
        training = subprocess.Popen(
            [sys.executable, "-c", TRAINED, tmp_path / "run"], cwd=ROOT, stdout=output, stderr=output
        )
        try:
            while training.poll() is None:
                step, size = last_step(tmp_path / "run" / "log.jsonl"), resident(training.pid)
                if size is not None:
                    used.setdefault(step - step % 500, []).append(size)
                time.sleep(0.1)
        finally:
            training.kill()
            training.wait()
    assert training.returncode == 0, (tmp_path / "output").read_text()
    peaks = {step: max(sizes) for step, sizes in used.items() if SETTLED <= step < STEPS}
    first, last = (max(peaks[step] for step in steps) for steps in (sorted(peaks)[:3], sorted(peaks)[-3:]))
    print(f"{first:.0f} MiB after {SETTLED:,} steps, {last - first:+.1f} MiB in the last 1,500 of {STEPS:,}")
    assert last - first < ALLOWED, peaks
