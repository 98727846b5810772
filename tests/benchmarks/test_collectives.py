import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import Collective, collectives, totals
from transformer_jax.sharding import MeshConfig, make_mesh

LAYERS, WIDTH, ROWS = 5, 32, 16
MATRIX = WIDTH * WIDTH * 4


def compiled_gradient(mesh, weights, rows):
    """Of a loss behind some layers in a loop: the gradient lies as the weights do."""
    weights, rows = NamedSharding(mesh, weights), NamedSharding(mesh, rows)

    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, w)[0] ** 2)

    like = (
        jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=weights),
        jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=rows),
    )
    return jax.jit(jax.grad(loss), out_shardings=weights).lower(*like).compile()


def test_one_device_sends_nothing():
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    assert collectives(compiled_gradient(mesh, P(), P()).as_text()) == []


def test_data_parallel_gradients_are_summed():
    """Once a layer, in the loop or after it."""
    found = collectives(compiled_gradient(make_mesh(MeshConfig(data=8)), P(), P("data")).as_text())
    assert {(each.kind, each.devices) for each in found} == {("all-reduce", 8)}
    assert totals(found)["all-reduce"][1] == LAYERS * MATRIX


def test_what_is_split_is_gathered_in_both_passes():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    found = collectives(compiled_gradient(mesh, P(None, "fsdp"), P("fsdp")).as_text())
    assert totals(found)["all-gather"] == (2 * LAYERS, 2 * LAYERS * MATRIX)
    assert {each.devices for each in found if each.kind == "all-gather"} == {4}
    assert totals(found)["all-reduce"][1] >= LAYERS * MATRIX


# Lines as XLA's compiler for TPUs writes them, names and attributes that play no part cut away.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8, frontend_attributes={arg="default"}

%start (p0: bf16[1,1024,512]) -> (bf16[1,1024,512], bf16[1,1024,1024], s32[2], u32[]) {
  %p0 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=15, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={2}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %custom-call.4 = (bf16[1,1024,512]{2,1,0}, s32[2]{0:S(4)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.33 (p0: bf16[1,1024,512]) -> bf16[1,1024,256] {
  %p0 = bf16[1,1024,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,1024,256]{2,1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=15, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={2}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}

%all-reduce-scatter.1 (input.5: bf16[1024,1024]) -> bf16[1024,512] {
  %input.5 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-reduce(%input.5), channel_id=9, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %dynamic-slice.1 = bf16[1024,512]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={1024,512}
}

%body (p: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %async-collective-start = (bf16[1,1024,512]{2,1,0}, s32[2]{0:S(4)}) fusion(%p), kind=kCustom, calls=%start
  %fusion.2 = bf16[1,1024,256]{2,1,0} fusion(%async-collective-start), kind=kCustom, calls=%async_collective_fusion.33
  %fusion.29 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} fusion(%fusion.2), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (p: (s32[], bf16[1024,512])) -> pred[] {
  %constant.56 = s32[]{:T(128)} constant(6)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt.11 = pred[]{:T(512)} compare(%i, %constant.56), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main.5_spmd (param.5: bf16[6,256,512]) -> bf16[6,256,512] {
  %param.5 = bf16[6,256,512]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[1,4,2]<=[8]}
  %all-gather.7 = bf16[6,256,512]{2,1,0:T(8,128)(2,1)} all-gather(%param.5), channel_id=1, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}
  ROOT %while.31 = (s32[]{:T(128)}, bf16[1024,512]{1,0:T(8,128)(2,1)S(1)}) while(%tuple.50), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_program_for_tpus():
    """A gather that overlaps other work counts once; a sum of which each device keeps a part is a reduce-scatter."""
    assert collectives(TPU) == [
        Collective("all-gather", 6 * 256 * 512 * 2, 4, 1),
        Collective("all-gather", 1024 * 256 * 2, 2, 6),
        Collective("reduce-scatter", 1024 * 1024 * 2, 2, 6),
    ]
    assert {kind: (count, round(size / 1e6, 1)) for kind, (count, size) in totals(collectives(TPU)).items()} == {
        "all-gather": (7, 4.7),
        "reduce-scatter": (6, 12.6),
    }


@pytest.mark.parametrize(
    ("instruction", "kind", "size", "devices"),
    [
        ("f32[8]{0} all-reduce(%a), replica_groups={}", "all-reduce", 32, 8),
        ("(f32[8]{0}, pred[3]{0}) all-reduce-start(%a, %b), replica_groups=[1,8]<=[8]", "all-reduce", 35, 8),
        ("(f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8]", "all-gather", 32, 4),
        ("((s8[2], s8[4]), (s8[4], s8[8])) all-gather-start(%a, %b), replica_groups=[4,2]<=[8]", "all-gather", 12, 2),
        ("((f32[8]), f32[2]) reduce-scatter-start(%a), replica_groups={{0,2,4,6},{1,3,5,7}}", "reduce-scatter", 32, 4),
        ("bf16[2]{0} reduce-scatter(%a), replica_groups=[2,4]<=[4,2]T(1,0)", "reduce-scatter", 16, 4),
        ("f64[2,3]{1,0} all-to-all(%a), replica_groups=mesh['x'=2,'y'=4] {'x','y'}", "all-to-all", 48, 8),
        ("f8e4m3fn[4]{0} all-to-all(%a), replica_groups=mesh['x'=8] {'x':(2)4}", "all-to-all", 4, 4),
        ("s4[5]{0} all-gather(%a), replica_groups=[1,8]<=[8]", "all-gather", 3, 8),
        (
            "(bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            8,
            8,
        ),
    ],
)
def test_every_way_to_write_one(instruction, kind, size, devices):
    text = f"HloModule m, num_partitions=8\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  %c = {instruction}\n}}\n"
    assert collectives(text) == [Collective(kind, size, devices, 1)]


def test_what_is_started_elsewhere_counts_once():
    text = """HloModule m, num_partitions=4

%wrapped (a: f32[8]) -> f32[8] {
  ROOT %r = f32[2]{0} reduce-scatter(%a), replica_groups=[1,4]<=[4], to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %s = ((f32[8]), f32[2]) async-start(%a), calls=%wrapped
  %d = f32[2]{0} async-done(%s), calls=%wrapped
  %e = f32[8]{0} all-gather-done(%f)
  %b = f32[8]{0} conditional(%i, %a, %a), branch_computations={%wrapped, %nothing}
}
"""
    assert collectives(text) == [Collective("reduce-scatter", 32, 4, 1)] * 2


def test_a_ring():
    assert Collective("all-reduce", 800, 8, 3).sent == 1400
    assert Collective("reduce-scatter", 800, 8, 3).sent == Collective("all-gather", 800, 8, 3).sent == 700
    assert Collective("collective-permute", 800, 8, 3).sent == 800
    assert totals([Collective("all-reduce", 800, 8, 3), Collective("all-reduce", 1, 2, 1)]) == {"all-reduce": (4, 2401)}
