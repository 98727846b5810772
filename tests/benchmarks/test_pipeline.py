import contextlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.pipeline import _rate, build, first_window, real_tokens, run
from benchmarks.settings import Settings, Unavailable
from benchmarks.shipped import EMBEDDED, ROOT, SHIPPED, shipped_config, shipped_options
from transformer_jax.config import Config, DataConfig, TokenizerConfig
from transformer_jax.data.packing import collate_pairs
from transformer_jax.data.pipeline import Batches
from transformer_jax.system import runtime

RECORDS = [(np.full(n, 5, np.int32), np.full(n, 6, np.int32)) for n in (1, 2, 3, 4, 4, 4)]


def batches(window_size):
    options = {"batching": "bucket", "tokens_per_batch": 8, "row_length": 4, "bucket_lengths": (4,), "max_length": 4}
    return Batches(RECORDS, list, partial(collate_pairs, bos=1), window_size=window_size, **options)


def test_a_window_is_read_and_no_more():
    assert sum(map(real_tokens, first_window(batches(100), epoch=1))) == 2 * 18
    assert len(list(first_window(batches(2), epoch=0))) == 1


def test_rates_count_real_tokens_and_padding():
    found = _rate(batches(100), epoch=0)
    assert found["tokens"] == 36
    assert found["padding"] == pytest.approx(1 - 18 / 24)
    assert found["rate"] > 0


def test_all_configs_are_named_and_found():
    assert sorted(SHIPPED) == sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    for name in EMBEDDED:
        assert shipped_config(name, Settings()).data.name in ("numerals", "headlines", "antitheses")
        assert shipped_options(name, Settings()) == [f"--config={ROOT / 'configs' / name}.py"]


def test_data_that_is_not_there_is_asked_for(tmp_path):
    with pytest.raises(Unavailable, match="--data"):
        shipped_config("multi30k", Settings(data=tmp_path))
    (tmp_path / "multi30k").mkdir()
    config = shipped_config("multi30k", replace(Settings(), data=tmp_path))
    assert config.data.manual_dir == str(tmp_path / "multi30k")


def test_a_config_is_measured(monkeypatch, tmp_path):
    pairs = tmp_path / "pairs"
    pairs.write_text("".join(f"number {n}\n" for n in range(40)), encoding="utf-8")
    files = {f"{part}_{side}": str(pairs) for part in ("train", "validation") for side in ("source", "target")}
    data = DataConfig(name="text", tokens_per_batch=256, row_length=8, max_length=8, **files)
    config = Config(data=data, tokenizer=TokenizerConfig(kind="word"))
    monkeypatch.setattr("benchmarks.pipeline.shipped_config", lambda name, settings: config)
    monkeypatch.setattr(runtime, "prepare", list)  # this process is not one of a benchmark
    monkeypatch.setattr("benchmarks.pipeline._training", lambda config, task, first: lambda batch: None)
    found = build("numerals", Settings())()
    assert found["tokens"] == 2 * 40 * 3  # two words and the end
    assert {"first", "later", "step", "kept", "tokens", "padding"} == set(found)
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(("kept", "later"), [(1.0, "(batching)"), (0.0, "(reading, tokenizing, batching again")])
def test_later_epochs_say_what_they_do(monkeypatch, kept, later):
    class Measured:
        def measure(self):
            return dict.fromkeys(("first", "later", "step", "tokens", "padding"), 2.0) | {"kept": kept}

    measured = {"numerals": Measured()}
    monkeypatch.setattr("benchmarks.pipeline.workers", lambda *_, **__: contextlib.nullcontext(measured))
    records = list(run(Settings(quick=True)))
    assert any(later in record.subject for record in records if record.unit == "tokens/s")
