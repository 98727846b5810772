import importlib.util

import jax
import pytest
from flax import nnx

from benchmarks.collectives import Collective
from benchmarks.hlo_cost import Cost
from benchmarks.settings import Settings, Unavailable
from benchmarks.tpu_chips import CHIPS, TOPOLOGIES, chip_of
from benchmarks.tpu_compile import DATA, ENVIRONMENT, FSDP, MESHES, least_seconds, programs, run
from benchmarks.tpu_programs import DECODER, ENCODER, SHAPES, STEP, Compiled, Program, build, described, step_size
from benchmarks.workers import Worker
from transformer_jax.nn import Seq2Seq, split
from transformer_jax.training.usage import chip_flops

HAS_COMPILER = importlib.util.find_spec("libtpu") is not None


def parameters(shape):
    model, _ = SHAPES[shape]
    params = jax.eval_shape(lambda: split(Seq2Seq(model, rngs=nnx.Rngs(0)))[1])
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_sizes_are_those_of_the_paper_and_a_billion():
    assert [round(parameters(shape) / 1e6) for shape in MESHES] == [63, 214, 1007]


def test_every_program_is_compiled_for_every_topology():
    for topology in TOPOLOGIES:
        found = programs(topology, quick=False)
        assert len(found) == len(set(found))
        assert {(p.shape, p.kind) for p in found} >= {(s, k) for s in MESHES for k in (STEP, ENCODER, DECODER)}
        assert {p.shape for p in found} <= set(SHAPES)
        assert chip_flops(chip_of(topology).kind) is not None
    assert [str(p) for p in programs("v5e:2x4", quick=True)] == [
        "base, training step, data",
        "base, training step, fsdp",
    ]


def test_programs_are_described():
    words = described(Program("1b", DECODER, DATA), 8)
    assert words.startswith(
        "one decode step, d_model 2048, 16 heads, d_ff 8192, 8+8 layers, vocabulary 32,768, pre-norm"
    )
    assert words.endswith("; 512 sentences of 64 tokens with a beam of 4")
    assert "256 rows of 256 tokens a side" in described(Program("base", STEP, FSDP), 8)


def test_least_seconds_are_those_of_the_chip():
    gather = Collective("all-gather", size=800_000_000, devices=8, times=2)
    found = Compiled(8, 1.0, 1e9, Cost(flops=197e12, padded=2 * 197e12, moved=2 * 819e9), (gather,))
    assert least_seconds(found, CHIPS["v5e"]) == pytest.approx({"arithmetic": 1, "memory": 2, "network": 2 * 0.7 / 200})


@pytest.mark.skipif(HAS_COMPILER, reason="libtpu is installed")
def test_without_the_compiler_it_says_what_to_install():
    with pytest.raises(Unavailable, match=r"package libtpu is not installed; pip install -e \"\.\[tpu\]\""):
        next(run(Settings(quick=True)))


@pytest.fixture(scope="module")
def base():
    """Base on eight chips of a v5e, by data and by fsdp, from the compiler for TPUs."""
    asked = [Program("base", STEP, mesh) for mesh in (DATA, FSDP)]
    with Worker(build, "v5e:2x4", asked, 128, TOPOLOGIES["v5e:2x4"], environment=ENVIRONMENT) as worker:
        return [worker.measure() for _ in asked]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason='libtpu is not installed: pip install -e ".[tpu]"')
class TestTheRealCompiler:
    def test_base_fits_with_room(self, base):
        for found in base:
            assert found.devices == 8
            assert 12 * parameters("base") / 8 < found.memory < 0.5 * 16e9

    def test_each_computes_its_share_and_its_layers_once_more(self, base):
        formula = step_size("base", 8).flops / 8
        for found in base:
            assert 1 < found.cost.flops / formula < 4 / 3

    def test_data_parallel_sends_the_gradients_and_nothing_else(self, base):
        data, _ = base
        self.check(data, {"all-reduce"})
        assert 2 * parameters("base") < self.sizes(data)["all-reduce"] < 1.01 * 4 * parameters("base")

    def test_fsdp_gathers_parameters_and_scatters_gradients_and_nothing_else(self, base):
        _, fsdp = base
        self.check(fsdp, {"all-gather", "reduce-scatter", "all-reduce"})
        sizes = self.sizes(fsdp)
        for kind in ("all-gather", "reduce-scatter"):
            assert 2 * parameters("base") < sizes[kind] < 1.01 * 4 * parameters("base")
        # Biases, norms, sums: what every device holds whole.
        assert sizes["all-reduce"] < 0.01 * 4 * parameters("base")

    def check(self, found, kinds):
        assert {each.kind for each in found.collectives} == kinds
        assert {each.devices for each in found.collectives} == {8}
        # Once a step or once a layer, and never once a turn of the loss's loop.
        assert {each.times for each in found.collectives} <= {1, SHAPES["base"][0].num_encoder_layers}

    def sizes(self, found):
        kinds = {each.kind for each in found.collectives}
        return {kind: sum(e.times * e.size for e in found.collectives if e.kind == kind) for kind in kinds}
