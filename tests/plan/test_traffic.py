"""Memory traffic of a compiled GPU program, compared with counts by hand."""

import pytest

from sdft_jax.plan.traffic import memory_traffic

PROGRAM = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.9 = f32[] add(%a, %b)
}

%fused_slice (p0: bf16[10,4,8], p1: s32[]) -> bf16[4,8] {
  %p0 = bf16[10,4,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %ds = bf16[1,4,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %bc = bf16[4,8]{1,0} bitcast(%ds)
}

%fused_write (q0: bf16[10,4,8], q1: f32[4,8], q2: s32[]) -> bf16[10,4,8] {
  %q0 = bf16[10,4,8]{2,1,0} parameter(0)
  %q1 = f32[4,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %narrow = bf16[4,8]{1,0} convert(%q1)
  %one = bf16[1,4,8]{2,1,0} bitcast(%narrow)
  ROOT %dus = bf16[10,4,8]{2,1,0} dynamic-update-slice(%q0, %one, %q2, %zero.1, %zero.1)
}

%body (t: (s32[], bf16[10,4,8])) -> (s32[], bf16[10,4,8]) {
  %t = (s32[], bf16[10,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[10,4,8]{2,1,0} get-tuple-element(%t), index=1
  %read = bf16[4,8]{1,0} fusion(%x, %i), calls=%fused_slice, metadata={op_name="jit(f)/read"}
  %product = f32[4,8]{1,0} custom-call(%read, %read), metadata={op_name="jit(f)/dot"}
  %write = bf16[10,4,8]{2,1,0} fusion(%x, %product, %i), calls=%fused_write, metadata={op_name="jit(f)/write"}
  ROOT %next = (s32[], bf16[10,4,8]{2,1,0}) tuple(%i, %write)
}

%condition (u: (s32[], bf16[10,4,8])) -> pred[] {
  %u = (s32[], bf16[10,4,8]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%j, %bound), direction=LT
}

ENTRY %main (start: bf16[10,4,8], v: f32[6,8]) -> f32[6] {
  %start = bf16[10,4,8]{2,1,0} parameter(0)
  %v = f32[6,8]{1,0} parameter(1)
  %zero.2 = f32[] constant(0)
  %count = s32[] constant(0)
  %init = (s32[], bf16[10,4,8]{2,1,0}) tuple(%count, %start)
  %loop = (s32[], bf16[10,4,8]{2,1,0}) while(%init), condition=%condition, body=%body
  ROOT %r = f32[6]{0} reduce(%v, %zero.2), dimensions={1}, to_apply=%sum, metadata={op_name="jit(f)/sum"}
}
"""


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(f)/read", 5 * (64 + 4 + 64)),  # reads a slice of x and its index, writes the slice
        ("jit(f)/dot", 5 * (64 + 64 + 128)),
        ("jit(f)/write", 5 * (128 + 4 + 64)),  # updates a slice of x in place, does not read x
        ("jit(f)/sum", 6 * 8 * 4 + 4 + 6 * 4),  # the additions of the reduction do not count
    ],
)
def test_kernel_counts_its_operands_and_results_times_the_trip_count(scope, expected):
    assert memory_traffic(PROGRAM)[scope] == expected


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(f)/read", 5 * (64 + 4)),  # the slice stays in the cache
        ("jit(f)/dot", 0.0),
        ("jit(f)/write", 5 * (4 + 64)),  # of x, the loop's own, only a slice is updated
        ("jit(f)/sum", 6 * 8 * 4 + 4),
    ],
)
def test_small_values_that_a_kernel_makes_stay_in_the_cache(scope, expected):
    assert memory_traffic(PROGRAM, kept=128)[scope] == expected


def test_an_updated_array_is_read_from_memory():
    read = PROGRAM.replace("fusion(%x, %i), calls=%fused_slice", "fusion(%write, %i), calls=%fused_slice")
    assert memory_traffic(read, kept=1e9)["jit(f)/read"] == 5 * (64 + 4)


def test_other_operations_are_not_kernels():
    assert len([scope for scope, count in memory_traffic(PROGRAM).items() if count]) == 4


ON_CHIP = """HloModule jit_f, is_scheduled=true

%slice_of (i0: bf16[10,4,8], i1: s32[]) -> bf16[4,8] {
  %i0 = bf16[10,4,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %ds = bf16[1,4,8]{2,1,0:T(8,128)(2,1)} dynamic-slice(%i0, %i1, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %bc = bf16[4,8]{1,0:T(8,128)(2,1)} bitcast(%ds)
}

%same (j0: bf16[6,8]) -> bf16[6,8] {
  %j0 = bf16[6,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %bc.1 = bf16[6,8]{1,0:T(8,128)(2,1)} bitcast(%j0)
}

%product (o0: bf16[64,4], o1: bf16[10,4,8], o2: s32[], o3: bf16[6,8]) -> (bf16[64,8], bf16[64,6]) {
  %o0 = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %o1 = bf16[10,4,8]{2,1,0:T(8,128)(2,1)} parameter(1)
  %o2 = s32[]{:T(128)S(6)} parameter(2)
  %o3 = bf16[6,8]{1,0:T(8,128)(2,1)} parameter(3)
  %weight = bf16[4,8]{1,0:T(8,128)(2,1)} fusion(%o1, %o2), kind=kLoop, calls=%slice_of
  %head = bf16[6,8]{1,0:T(8,128)(2,1)} fusion(%o3), kind=kLoop, calls=%same
  %x = bf16[64,8]{1,0:T(8,128)(2,1)S(1)} convolution(%o0, %weight), dim_labels=bf_io->bf
  %y = bf16[64,6]{1,0:T(8,128)(2,1)} convolution(%x, %head), dim_labels=bf_oi->bf
  ROOT %both = (bf16[64,8]{1,0:T(8,128)(2,1)S(1)}, bf16[64,6]{1,0:T(8,128)(2,1)}) tuple(%x, %y)
}

ENTRY %main (start: bf16[64,4], w: bf16[10,4,8], i: s32[], h: bf16[6,8]) -> bf16[16,6] {
  %start = bf16[64,4]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[10,4,8]{2,1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %h = bf16[6,8]{1,0:T(8,128)(2,1)} parameter(3)
  %moving = (bf16[64,4]{1,0:T(8,128)(2,1)S(1)}, bf16[64,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%start), metadata={op_name="jit(f)/copy"}
  %moved = bf16[64,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%moving)
  %dot = (bf16[64,8]{1,0:T(8,128)(2,1)S(1)}, bf16[64,6]{1,0:T(8,128)(2,1)}) fusion(%moved, %w, %i, %h), \
calls=%product, metadata={op_name="jit(f)/dot"}
  %out = bf16[64,6]{1,0:T(8,128)(2,1)} get-tuple-element(%dot), index=1
  %part = ((bf16[64,6]{1,0:T(8,128)(2,1)}), bf16[16,6]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) \
slice-start(%out), slice={[0:16], [0:6]}, metadata={op_name="jit(f)/slice"}
  ROOT %end = bf16[16,6]{1,0:T(8,128)(2,1)S(1)} slice-done(%part)
}
"""


def test_what_a_tpu_keeps_on_the_chip_does_not_count():
    """The copy reads `start`, and the slice 16 rows; the fusion reads one matrix of `w` and all of `h`, and
    writes its second result.
    """
    counts = {scope: count for scope, count in memory_traffic(ON_CHIP).items() if count}
    expected = {"copy": 2 * 64 * 4, "dot": 2 * (4 * 8 + 6 * 8 + 64 * 6), "slice": 2 * 16 * 6}
    assert counts == {f"jit(f)/{name}": count for name, count in expected.items()}
