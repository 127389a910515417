"""FLOPs, cycle estimates and collectives of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a while loop once; here each operation counts each time it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

# The doctests below the patterns are lines of programs that JAX 0.10 lowered, or compiled for CPU, GPU (H200)
# or TPU (v5e), without the attributes that the pattern does not need. tests/plan/test_hlo.py runs them.

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
"""The header of a computation: its name.

>>> _COMPUTATION.match("ENTRY %main.5_spmd (param.3: bf16[256,128]) -> bf16[] {").groups()
('main.5_spmd',)
>>> _COMPUTATION.match("%region_1.0 (reduce_sum.8: bf16[], reduce_sum.9: bf16[]) -> bf16[] {").groups()
('region_1.0',)
>>> _COMPUTATION.match("region_0.3 {").groups()  # lowered
('region_0.3',)
"""

_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
"""An operation in a computation: its name, and the text after the equals sign.

>>> _OPERATION.match("  ROOT %add.9 = f32[] add(%x.2, %y)").groups()
('add.9', 'f32[] add(%x.2, %y)')
>>> _OPERATION.match("  psum.2 = bf16[] parameter(0)").groups()  # lowered
('psum.2', 'bf16[] parameter(0)')
"""

_PARTS = re.compile(r"^(.*?) ([a-z][a-z\-]*)\(([^)]*)\)")
"""The text after the equals sign: the shape of the result with its layout, the opcode, and the operands.

>>> _PARTS.match("pred[] compare(get-tuple-element.9, constant.8), direction=LT").groups()
('pred[]', 'compare', 'get-tuple-element.9, constant.8')
>>> _PARTS.match("f32[128,256]{1,0:T(8,128)S(1)} copy(%fusion.13)").groups()
('f32[128,256]{1,0:T(8,128)S(1)}', 'copy', '%fusion.13')
>>> _PARTS.match("(bf16[256,128]{1,0}, bf16[512,128]{1,0}) all-gather-start(%bitcast.215)").groups()
('(bf16[256,128]{1,0}, bf16[512,128]{1,0})', 'all-gather-start', '%bitcast.215')
"""

_OPERAND = re.compile(r"([\w.\-]+)(?:,|$)")
"""The name of an operand without the comments between operands, or the value of a constant.

>>> _OPERAND.findall("%copy.4, %copy.28, %wrapped_broadcast.2, %copy.7, %copy.8, /*index=5*/%w.1")
['copy.4', 'copy.28', 'wrapped_broadcast.2', 'copy.7', 'copy.8', 'w.1']
>>> _OPERAND.findall("-1")
['-1']
"""

_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
"""The shape of an array: the kind of its numbers, their bits, and the size of each dimension.

>>> _ARRAY.match("bf16[256,128]{1,0:T(8,128)(2,1)S(1)}").groups()
('bf', '16', '256,128')
>>> _ARRAY.match("f8e4m3fn[4,8]{1,0}").groups()
('f', '8', '4,8')
>>> _ARRAY.match("pred[]{:T(512)}").groups()
('pred', '', '')
>>> _ARRAY.findall("(s32[], bf16[], bf16[256,128]{1,0})")
[('s', '32', ''), ('bf', '16', ''), ('bf', '16', '256,128')]
"""

_ON_CHIP = re.compile(r"\w+\[[\d,]*\]\{[^{}]*S\([1-9]\d*\)[^{}]*\}")
"""An array in one of the memories on a TPU chip, by its layout.

>>> _ON_CHIP.sub("", "(bf16[8,64]{1,0:T(8,128)(2,1)S(1)}, bf16[8,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)})")
'(, bf16[8,64]{1,0:T(8,128)(2,1)}, )'
"""

_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
"""The dimensions of the first operand that a dot sums over.

>>> _CONTRACTED.search("bf16[8,1,128]{2,1,0} dot(reshape.5, Arg_11.5), lhs_contracting_dims={2,3}").groups()
('2,3',)
"""

_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
"""A computation that an operation calls, other than a condition or a branch (below).

>>> _CALLED.findall("f32[256,128]{0,1} fusion(%copy.21), kind=kLoop, calls=%fused_computation.11")
['fused_computation.11']
>>> _CALLED.findall("pred[] reduce(%param_0.2, %constant_6_1), dimensions={0}, to_apply=%region_2.2")
['region_2.2']
>>> _CALLED.findall(
...     "(s32[], bf16[], bf16[256,128]{1,0}) while(while.4), condition=region_2.4, body=region_0.3"
... )
['region_0.3']
>>> _CALLED.findall(
...     "(f32[128,256]{1,0}) conditional(%c.1, %cond.4.0, %cond.4.0), "
...     "true_computation=%region_1.2, false_computation=%region_0.1"
... )
['region_1.2', 'region_0.1']
"""

_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
"""The branches of a conditional that an integer selects.

>>> _BRANCHES.findall(
...     "(f32[128,256]{1,0}) conditional(%wrapped_convert, %cond.3, %cond.3), "
...     "branch_computations={%region_0.1, %region_1.2}"
... )
['%region_0.1, %region_1.2']
"""

_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
"""The trip count of a while loop, if the compiler writes it; the TPU compiler does not.

>>> _TRIP_COUNT.search(
...     "(s32[], bf16[], bf16[256,128]{1,0}) while(%tuple.6), "
...     'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}'
... ).groups()
('3',)
"""

_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
"""The condition of a while loop.

>>> _CONDITION.search(
...     "(s32[], bf16[], bf16[256,128]{1,0}) while(while.4), condition=region_2.4, body=region_0.3"
... ).groups()
('region_2.4',)
"""

_SCOPE = re.compile(r'op_name="([^"]*)"')
"""The path of JAX functions and named scopes in the source.

>>> _SCOPE.search('s32[] add(%param_0.3, %param_1.2), metadata={op_name="jit(chain)/while/body/add"}')[1]
'jit(chain)/while/body/add'
"""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
"""The TPU compiler's estimate of the cycles that an operation takes.

>>> _CYCLES.search(
...     "f32[128,256]{1,0:T(8,128)} copy(%x.1), "
...     'backend_config={"window_config":{"input_window_bounds":[],"estimated_cycles":"2365"}}'
... ).groups()
('2365',)
"""

_SCATTER = re.compile(r"calls=%?(all-reduce-scatter[\w.\-]*)")
"""The computation of a fusion that runs as a reduce-scatter on a TPU.

>>> _SCATTER.search(
...     "bf16[512,256]{1,0:T(8,128)(2,1)S(1)} fusion(%fusion.25), "
...     "kind=kCustom, calls=%all-reduce-scatter.1.clone.1"
... ).groups()
('all-reduce-scatter.1.clone.1',)
"""

_GROUPS = re.compile(r"replica_groups=.*?(?=, \w+=|$)")
"""The attribute with the replica groups of a collective.

>>> _GROUPS.search(
...     "f32[128,512]{1,0} all-reduce(%dot.15), channel_id=5, replica_groups=[4,2]<=[2,4]T(1,0), "
...     "use_global_device_ids=true, to_apply=%add.1.clone_promoted"
... )[0]
'replica_groups=[4,2]<=[2,4]T(1,0)'
"""

_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")
"""Replica groups as lists: the devices of the first group.

>>> _GROUP_LIST.search(
...     "bf16[4,256,128]{2,1,0} all-to-all(reshape.2), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}"
... ).groups()
('0,1,2,3',)
"""

_GROUP_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
"""Replica groups as the rows of a reshaped iota: the number of devices in a row.

>>> _GROUP_IOTA.search(
...     "f32[128,512]{1,0} all-reduce(%dot.15), channel_id=5, replica_groups=[4,2]<=[2,4]T(1,0)"
... ).groups()
('2',)
"""

_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
"""Replica groups by mesh axes: the sizes of all axes, and the axes along which a group extends.

>>> _GROUP_MESH.search(
...     "bf16[1,256,512]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.72), channel_id=8, "
...     "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}"
... ).groups()
("'axis_0'=2,'axis_1'=4", "'axis_1'")
"""


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation (an HLO instruction)."""

    name: str
    text: str
    """The text after the equals sign."""
    shape: str
    """The shape of the result with its layout, such as `bf16[4,8]{1,0}`."""
    opcode: str
    operands: tuple[str, ...]
    """The names of the operands, or the value of a constant."""

    @property
    def scope(self) -> str:
        """The path of JAX functions and named scopes in the source, such as `jit(update)/rollout/mul`."""
        match = _SCOPE.search(self.text)
        return match[1] if match else ""

    @property
    def called(self) -> list[str]:
        """The names of the computations that the operation calls, except the condition of a while loop."""
        branches = [
            name.strip().lstrip("%") for names in _BRANCHES.findall(self.text) for name in names.split(",")
        ]
        return [*_CALLED.findall(self.text), *branches]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a program, with all its repetitions."""

    kind: str
    """The opcode, such as `all-gather`."""
    scope: str
    times: float
    """The number of times that the program runs it."""
    bytes: float
    """The number of bytes that a device receives in all repetitions."""


def matmul_flops(text: str) -> float:
    """Return the floating-point operations of all matrix products, as `matmul_flops_by_scope` counts them."""
    return sum(matmul_flops_by_scope(text).values())


def matmul_flops_by_scope(text: str) -> dict[str, float]:
    """Return the floating-point operations of all matrix products by scope, 2 for each multiply-add.

    Args:
        text: `compiled.as_text()`, or `lowered.as_text(dialect="hlo", debug_info=True)`.
    """

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        flops = _dot_flops(op, shapes)
        return Counter({op.scope: flops}) if flops else Counter()

    return dict(total(text, cost))


def estimated_cycles(text: str) -> dict[str, float]:
    """Return the sums of the TPU compiler's cycle estimates by scope.

    The compiler has no estimates for custom kernels, nor for the time spent waiting for other chips.
    """

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        match = _CYCLES.search(op.text)
        return Counter({op.scope: float(match[1])}) if match else Counter()

    return dict(total(text, cost))


def collectives(text: str) -> list[Collective]:
    """Return the collective operations of a program; an asynchronous one counts only at its start."""

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        kind = op.opcode.removesuffix("-start")
        if kind not in _RECEIVED:
            return Counter()
        size = size_of(op.shape, is_start=op.opcode.endswith("-start"))
        return Counter({(kind, op.scope, size * _RECEIVED[kind](_group_size(op.text))): 1.0})

    counts = total(text, cost)
    return [Collective(kind, scope, times, times * size) for (kind, scope, size), times in counts.items()]


def total(text: str, cost: Callable[[Op, Mapping[str, tuple[int, ...]]], Counter]) -> Counter:
    """Return the sum of the costs of all operations, each multiplied by the number of times that it runs.

    A while loop counts with its maximum trip count, or with 1 if the text does not give it. A conditional
    counts with its most expensive branch.

    Args:
        text: HLO text.
        cost: returns the costs of an operation, by any keys. Its second argument has the dimensions of the
            arrays in the operation's computation, by name.
    """
    computations = read_computations(text)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)

    @functools.cache
    def count(name: str) -> Counter:
        ops = computations[name][1]
        shapes = {op.name: _dimensions(op.shape) for op in ops}
        return _sum(costs for op in ops for costs in (cost(op, shapes), called(op)))

    def called(op: Op) -> Counter:
        parts = [
            _prefixed(op.scope, count(name))
            for name in op.called
            if name in computations and not _continues_collective(op.name, name)
        ]
        if op.opcode == "conditional":
            return max(parts, key=lambda costs: sum(costs.values()), default=Counter())
        if op.opcode != "while":
            return _sum(parts)
        trip_count = _trip_count(op, computations)
        times = 1.0 if trip_count is None else trip_count
        return Counter({key: times * value for key, value in _sum(parts).items()})

    return count(entry)


def _prefixed(scope: str, costs: Counter) -> Counter:
    """Return costs with full scopes: a lowered computation has only the part below its caller's scope."""
    return Counter(
        {
            f"{scope}/{key}" if isinstance(key, str) and not key.startswith("jit(") else key: cost
            for key, cost in costs.items()
        }
    )


def _sum(counters: Iterable[Counter]) -> Counter:
    total: Counter = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _continues_collective(caller: str, called: str) -> bool:
    """Return True if the call only continues or ends an asynchronous collective that has already started.

    A TPU program repeats it in the fusion that it overlaps with and in the fusion that ends it.
    """
    return caller.startswith("async-collective-done") or called.startswith("async_collective_fusion")


def _trip_count(op: Op, computations: Mapping[str, tuple[bool, list[Op]]]) -> float | None:
    """Return the maximum trip count of a while loop, or None if it is unknown.

    It comes from the compiler's annotation, or else from the constant that bounds the loop counter in the
    condition.
    """
    if known := _TRIP_COUNT.search(op.text):
        return float(known[1])
    condition = _CONDITION.search(op.text)
    names = [condition[1]] if condition else []
    for name in names:
        ops = {x.name: x for x in computations[name][1]}
        for x in ops.values():
            names += [called for called in _CALLED.findall(x.text) if called in computations]  # fusions
            if x.opcode == "compare" and "direction=LT" in x.text:
                counter, bound = (ops.get(operand) for operand in x.operands)
                limit = _integer(bound)
                if limit is not None:
                    return limit - _offset(counter, ops)
    return None


def _offset(counter: Op | None, ops: Mapping[str, Op]) -> float:
    """Return the constant that is added to a loop counter before the comparison."""
    if counter is None or counter.opcode != "add":
        return 0.0
    return sum(_integer(ops.get(operand)) or 0.0 for operand in counter.operands)


def _integer(op: Op | None) -> float | None:
    """Return the value of a constant s32 scalar, or None if the operation is not one."""
    if op is None or op.opcode != "constant" or not op.shape.startswith("s32[]"):
        return None
    return float(op.operands[0])


def read_computations(text: str) -> Mapping[str, tuple[bool, list[Op]]]:
    """Return the computations by name: (True for the entry computation, operations)."""
    computations: dict[str, tuple[bool, list[Op]]] = {}
    ops: list[Op] = []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            ops = []
            computations[header[1]] = (line.startswith("ENTRY"), ops)
        elif operation := _OPERATION.match(line):
            ops.append(_read_operation(operation[1], operation[2]))
    return {
        name: (entry, [_unfused(op, computations) for op in ops])
        for name, (entry, ops) in computations.items()
    }


def _read_operation(name: str, text: str) -> Op:
    match = _PARTS.match(text)
    shape, opcode, operands = match.groups() if match else ("", "", "")
    return Op(name, text, shape, opcode, tuple(_OPERAND.findall(operands)))


def _unfused(op: Op, computations: Mapping[str, tuple[bool, list[Op]]]) -> Op:
    """Return a reduce-scatter for a fusion of an all-reduce and a slice of its result, as a TPU runs it."""
    fused = _SCATTER.search(op.text)
    if fused is None:
        return op
    groups = next(_GROUPS.findall(x.text)[0] for x in computations[fused[1]][1] if x.opcode == "all-reduce")
    return _read_operation(op.name, op.text.replace(" fusion(", " reduce-scatter(").replace(fused[0], groups))


def _dimensions(shape: str) -> tuple[int, ...]:
    """Return the dimensions of an array; () for a scalar or a tuple."""
    match = _ARRAY.match(shape)
    return tuple(int(size) for size in match[3].split(",") if size) if match else ()


def _dot_flops(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Return the floating-point operations of a dot; 0 for any other operation."""
    if op.opcode != "dot":
        return 0.0
    contracted = _CONTRACTED.search(op.text)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * math.prod(_dimensions(op.shape)) * math.prod(shapes[op.operands[0]][axis] for axis in axes)


def size_of(shape: str, is_start: bool = False) -> float:
    """Return the size of a result in bytes.

    Args:
        shape: the shape of the result with its layout.
        is_start: True for the start of an asynchronous collective, whose shape is (operand, result).
    """
    arrays = _ARRAY.findall(shape)
    if is_start:
        arrays = arrays[1:2]
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) * (int(bits) / 8 if bits else 1)
        for _, bits, sizes in arrays
    )


def size_in_memory(shape: str) -> float:
    """Return the size of a result in bytes, without the arrays that a TPU keeps on the chip."""
    return size_of(_ON_CHIP.sub("", shape))


_RECEIVED: Mapping[str, Callable[[int], float]] = {
    "all-gather": lambda group: (group - 1) / group,
    "all-to-all": lambda group: (group - 1) / group,
    "ragged-all-to-all": lambda group: (group - 1) / group,
    "all-reduce": lambda group: 2 * (group - 1) / group,
    "reduce-scatter": lambda group: group - 1,
    "collective-permute": lambda group: 1.0,
}
"""The bytes that a device receives per byte of the result, given the number of devices in a replica group."""


def _group_size(text: str) -> int:
    """Return the number of devices in a replica group; 2 if the groups are in none of the three formats.

    A collective-permute has no groups. A mesh with `device_ids=` is in none of the formats.
    """
    if listed := _GROUP_LIST.search(text):
        return len(listed[1].split(","))
    if iota := _GROUP_IOTA.search(text):
        return int(iota[1])
    if mesh := _GROUP_MESH.search(text):
        sizes = dict(part.replace("'", "").split("=") for part in mesh[1].split(","))
        return math.prod(int(sizes[name.strip(" '")]) for name in mesh[2].split(",") if name.strip())
    return 2
