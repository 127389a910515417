"""Bytes of a program as a GPU's compiler writes it, against what is counted by hand."""

import pytest

from sdft_jax.plan.gpu_traffic import memory_traffic

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

%fused_into (q0: bf16[10,4,8], q1: f32[4,8], q2: s32[]) -> bf16[10,4,8] {
  %q0 = bf16[10,4,8]{2,1,0} parameter(0)
  %q1 = f32[4,8]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %half = bf16[4,8]{1,0} convert(%q1)
  %one = bf16[1,4,8]{2,1,0} bitcast(%half)
  ROOT %dus = bf16[10,4,8]{2,1,0} dynamic-update-slice(%q0, %one, %q2, %zero.1, %zero.1)
}

%body (t: (s32[], bf16[10,4,8])) -> (s32[], bf16[10,4,8]) {
  %t = (s32[], bf16[10,4,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[10,4,8]{2,1,0} get-tuple-element(%t), index=1
  %read = bf16[4,8]{1,0} fusion(%x, %i), calls=%fused_slice, metadata={op_name="jit(f)/read"}
  %product = f32[4,8]{1,0} custom-call(%read, %read), metadata={op_name="jit(f)/dot"}
  %into = bf16[10,4,8]{2,1,0} fusion(%x, %product, %i), calls=%fused_into, metadata={op_name="jit(f)/into"}
  ROOT %next = (s32[], bf16[10,4,8]{2,1,0}) tuple(%i, %into)
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
  %nought = f32[] constant(0)
  %count = s32[] constant(0)
  %made = (s32[], bf16[10,4,8]{2,1,0}) tuple(%count, %start)
  %loop = (s32[], bf16[10,4,8]{2,1,0}) while(%made), condition=%condition, body=%body
  ROOT %r = f32[6]{0} reduce(%v, %nought), dimensions={1}, to_apply=%sum, metadata={op_name="jit(f)/sum"}
}
"""


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(f)/read", 5 * (64 + 4 + 64)),  # a slice of x, its place; written as it is
        ("jit(f)/dot", 5 * (64 + 64 + 128)),
        ("jit(f)/into", 5 * (128 + 4 + 64)),  # x is written in place, but not read
        ("jit(f)/sum", 6 * 8 * 4 + 4 + 6 * 4),  # not what is added inside
    ],
)
def test_a_kernels_bytes_are_those_at_its_border_times_its_trips(scope, expected):
    assert memory_traffic(PROGRAM)[scope] == expected


def test_nothing_else_is_a_kernel():
    assert len([scope for scope, count in memory_traffic(PROGRAM).items() if count]) == 4
