import pytest

from benchmarks.scaling import axes, build, fitted_exponent
from benchmarks.synthetic import StepSize
from tests.benchmarks.test_synthetic import SIZE
from transformer_jax.system import runtime


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(exponent):
    values = {n: 7.0 * n**exponent for n in (2, 8, 64)}
    assert fitted_exponent(values) == pytest.approx(exponent, abs=1e-12)


def test_the_axes_are_those_asked_for():
    found = axes(quick=False)
    assert {name: (min(steps), max(steps)) for name, steps in found.items()} == {
        "length": (32, 4096),
        "vocabulary": (1000, 64_000),
        "depth": (2, 48),
    }
    assert all(isinstance(size, StepSize) for steps in found.values() for size in steps.values())
    deepest = found["depth"][48].model
    assert deepest.num_encoder_layers + deepest.num_decoder_layers == 48
    for name, steps in axes(quick=True).items():
        assert 2 <= len(steps) < len(found[name])


def test_time_and_memory_are_measured(monkeypatch):
    class Step:
        def __init__(self, size):
            self.peak_bytes = size.rows << 20

        def __call__(self):
            return 0.002

    monkeypatch.setattr(runtime, "prepare", list)  # this process is not one of a benchmark
    monkeypatch.setattr("benchmarks.scaling.SyntheticStep", Step)
    assert build([SIZE, SIZE], repeats=3)() == ([2.0, 2.0], [2.0, 2.0])
