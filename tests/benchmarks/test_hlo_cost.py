import pytest

from benchmarks.hlo_cost import Cost, cost

TILED = "{1,0:T(8,128)(2,1)}"
CHIP = "{1,0:T(8,128)(2,1)S(1)}"
"""Layouts in main memory, and in the memory of the chip itself."""


def program(*entry, others=""):
    return "\n".join(["HloModule m, is_scheduled=true", "", others, "ENTRY %main () -> f32[] {", *entry, "}", ""])


def test_a_product_of_matrices():
    text = program(
        f"  %a = bf16[64,256]{TILED} parameter(0)",
        f"  %b = bf16[256,512]{TILED} parameter(1)",
        f'  ROOT %c = bf16[64,512]{TILED} convolution(%a, %b), dim_labels=bf_io->bf, metadata={{op_name="x"}}',
    )
    flops = 2 * 64 * 256 * 512
    assert cost(text, 128) == Cost(flops, flops, 2 * (64 * 256 + 256 * 512 + 64 * 512))
    assert cost(text, 384) == Cost(flops, 2 * 64 * 384 * 768, 2 * (64 * 256 + 256 * 512 + 64 * 512))
    assert cost(text, 384).filled == pytest.approx(4 / 9)
    assert cost(program(f"  %a = bf16[64,256]{TILED} parameter(0)"), 128).filled == 1


@pytest.mark.parametrize(
    ("left", "right", "result", "attributes"),
    [
        # The ways in which a TPU writes products of 8 x 2 pairs of matrices of 64 x 32 and 32 x 16.
        (
            "8,64,2,32",
            "8,16,2,32",
            "8,2,64,16",
            "window={size=8x2 stride=7x1 lhs_dilate=8x2}, dim_labels=0b1f_0o1i->01bf",
        ),
        (
            "8,2,32,64",
            "8,2,16,32",
            "8,2,16,64",
            "window={size=8x2 stride=8x2 pad=7_7x1_1 lhs_dilate=7x1 rhs_reversal=1x1}, dim_labels=01fb_01oi->01fb",
        ),
    ],
)
def test_products_of_many_matrices(left, right, result, attributes):
    text = program(
        f"  %a = bf16[{left}] parameter(0)",
        f"  %b = bf16[{right}] parameter(1)",
        f"  ROOT %c = f32[{result}] convolution(%a, %b), {attributes}",
    )
    assert cost(text, 1).flops == 8 * 2 * (2 * 64 * 32 * 16)


def test_a_sum_over_rows_of_matrices():
    """The gradient of a kernel: 8 rows of 64 tokens."""
    text = program(
        "  %a = bf16[8,64,32] parameter(0)",
        "  %b = bf16[8,64,16] parameter(1)",
        "  ROOT %c = bf16[32,16,1] convolution(%a, %b), window={size=8}, dim_labels=0fb_0io->bf0",
    )
    assert cost(text, 1).flops == 2 * 8 * 64 * 32 * 16


LOOP = f"""
%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {{
  %p = (s32[]{{:T(128)}}, bf16[8,128]{TILED}) parameter(0)
  %x = bf16[8,128]{TILED} get-tuple-element(%p), index=1
  %y = bf16[8,128]{TILED} add(%x, %x)
  ROOT %t = (s32[]{{:T(128)}}, bf16[8,128]{TILED}) tuple(%i, %y)
}}

%condition (p: (s32[], bf16[8,128])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(6)
  %i = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%i, %bound), direction=LT
}}
"""


def test_what_a_loop_does_counts_as_often_as_it_runs():
    text = program(
        f"  %s = (s32[]{{:T(128)}}, bf16[8,128]{TILED}) parameter(0)",
        f"  ROOT %w = (s32[]{{:T(128)}}, bf16[8,128]{TILED}) while(%s), condition=%condition, body=%body",
        others=LOOP,
    )
    assert cost(text, 128).moved == 6 * 3 * (8 * 128 * 2)


FUSED = f"""
%inner (p0: f32[64,128]) -> f32[8,128] {{
  %p0 = f32[64,128]{TILED} parameter(0)
  %zero = s32[] constant(0)
  ROOT %slice = f32[8,128]{TILED} dynamic-slice(%p0, %zero, %zero), dynamic_slice_sizes={{8,128}}
}}

%fused (q0: f32[64,128], q1: f32[32,128]) -> f32[32,128] {{
  %q1 = f32[32,128]{TILED} parameter(1)
  %q0 = f32[64,128]{TILED} parameter(0)
  %part = f32[8,128]{TILED} fusion(%q0), kind=kLoop, calls=%inner
  %one = s32[] constant(1)
  %new = f32[32,128]{TILED} dynamic-update-slice(%q1, %part, %one, %one)
  ROOT %same = f32[32,128]{TILED} bitcast(%new)
}}
"""


def test_of_what_is_sliced_or_changed_in_place_only_the_part_moves():
    text = program(
        f"  %a = f32[64,128]{TILED} parameter(0)",
        f"  %b = f32[32,128]{TILED} parameter(1)",
        f"  ROOT %c = f32[32,128]{TILED} fusion(%a, %b), kind=kLoop, calls=%fused",
        others=FUSED,
    )
    assert cost(text, 128).moved == 2 * (8 * 128 * 4)


def test_of_several_results_each_is_written_as_it_is():
    text = program(
        f"  %a = f32[64,128]{TILED} parameter(0)",
        f"  %b = f32[8,128]{TILED} parameter(1)",
        f"  ROOT %c = (f32[64,128]{TILED}, f32[8,128]{TILED}) fusion(%a, %b), kind=kLoop, calls=%several",
        others=f"""
%several (p0: f32[64,128], p1: f32[8,128]) -> (f32[64,128], f32[8,128]) {{
  %p0 = f32[64,128]{TILED} parameter(0)
  %p1 = f32[8,128]{TILED} parameter(1)
  %one = s32[] constant(1)
  %new = f32[64,128]{TILED} dynamic-update-slice(%p0, %p1, %one, %one)
  %other = f32[8,128]{TILED} negate(%p1)
  ROOT %both = (f32[64,128]{TILED}, f32[8,128]{TILED}) tuple(%new, %other)
}}
""",
    )
    assert cost(text, 128).moved == 3 * (8 * 128 * 4)


def test_what_stays_on_the_chip_does_not_move():
    text = program(
        f"  %a = f32[8,128]{CHIP} parameter(0)",
        f"  %b = f32[8,128]{CHIP} negate(%a)",
        f"  ROOT %c = f32[8,128]{TILED} negate(%b)",
    )
    assert cost(text, 128).moved == 8 * 128 * 4


def test_copies_in_the_background_count_once():
    text = program(
        f"  %a = f32[8,128]{TILED} parameter(0)",
        f"  %s = (f32[8,128]{CHIP}, f32[8,128]{TILED}, u32[]{{:S(2)}}) copy-start(%a)",
        f"  ROOT %d = f32[8,128]{CHIP} copy-done(%s)",
    )
    assert cost(text, 128).moved == 8 * 128 * 4
    # Within main memory what is copied is read and written.
    assert cost(text.replace(CHIP, TILED), 128).moved == 2 * (8 * 128 * 4)


def test_tiles_are_filled_up():
    """A row of 64 takes as much memory as one of 128, and three rows as much as eight."""
    text = program(f"  %a = f32[3,64]{TILED} parameter(0)", "  ROOT %b = pred[3]{0:T(1024)} reduce(%a)")
    assert cost(text, 128).moved == 8 * 128 * 4 + 1024
