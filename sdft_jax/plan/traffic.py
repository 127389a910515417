"""Bytes that a compiled GPU or TPU program reads from memory and writes to it.

Only the operands and results of a kernel count: values inside a fused kernel do not go through memory, nor do
those that a TPU program keeps on the chip. If a kernel reads slices of an array, or updates a slice of an
array in place, only the slices count. Bytes that stay in a GPU's cache from one kernel to the next count too.
A kernel counts each operand once, however often it reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sdft_jax.plan.hlo import Op, read_computations, size_in_memory, size_of, total

_CONTROL = {"call", "conditional", "while"}
_NO_KERNEL = _CONTROL | {"after-all", "bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATE = "dynamic-update-slice"

Computations = Mapping[str, Sequence[Op]]


def memory_traffic(text: str) -> dict[str, float]:
    """Return the bytes read and written by scope; while loops and conditionals count as in `hlo.total`.

    Args:
        text: `compiled.as_text()` for a GPU or a TPU.
    """
    computations = {name: ops for name, (_, ops) in read_computations(text).items()}
    by_name = {op.name: op for ops in computations.values() for op in ops}
    fused = {
        inner.name
        for op in by_name.values()
        if op.opcode not in _CONTROL
        for called in op.called
        for inner in computations.get(called, ())
    }

    def cost(op: Op, _: Mapping[str, tuple[int, ...]]) -> Counter:
        if op.name in fused or op.opcode in _NO_KERNEL or op.opcode.endswith("-done"):
            return Counter()
        if op.opcode == "fusion" and op.called:
            ops = computations[op.called[0]]
            reads = sum(_read_by(ops, x, computations) for x in ops if x.opcode == "parameter")
            return Counter({op.scope: reads + _fusion_writes(ops[-1].name, by_name)})
        return Counter({op.scope: _single_traffic(op, by_name)})

    return dict(total(text, cost))


def _single_traffic(op: Op, by_name: Mapping[str, Op]) -> float:
    """Return the bytes that an operation outside of fusions reads and writes."""
    operands = [by_name[name].shape for name in op.operands]
    if op.opcode.endswith("-start"):  # the shape has the operand and the result
        is_slice = op.opcode.removesuffix("-start") in _SLICES
        return size_of(op.shape, is_start=True) if is_slice else size_in_memory(op.shape)
    if op.opcode in _SLICES:
        return (size_of(op.shape) if size_in_memory(operands[0]) else 0) + size_in_memory(op.shape)
    if op.opcode == _UPDATE:
        return (size_of(operands[1]) if size_in_memory(op.shape) else 0) + size_in_memory(operands[1])
    return size_in_memory(op.shape) + sum(map(size_in_memory, operands))


def _read_by(ops: Sequence[Op], value: Op, computations: Computations) -> float:
    """Return the bytes that the operations of a fusion read from one of its values."""
    reads = size_of(value.shape) if value is ops[-1] else 0.0  # the result, which others read
    for user in ops:
        for place, operand in enumerate(user.operands):
            if operand != value.name:
                continue
            if user.opcode == "bitcast":
                reads += _read_by(ops, user, computations)
            elif user.opcode == "fusion" and user.called:
                inner = computations[user.called[0]]
                reads += sum(
                    _read_by(inner, x, computations)
                    for x in inner
                    if x.opcode == "parameter" and x.operands[0] == str(place)
                )
            elif place == 0 and user.opcode in _SLICES:
                reads += size_of(user.shape)
            elif not (place == 0 and user.opcode == _UPDATE):
                reads += size_of(value.shape)
    return min(reads, size_in_memory(value.shape))


def _fusion_writes(root: str, by_name: Mapping[str, Op]) -> float:
    """Return the bytes that a fusion with this root writes."""
    op = by_name[root]
    if not size_in_memory(op.shape):
        return 0.0
    if op.opcode == "tuple":
        return sum(_fusion_writes(operand, by_name) for operand in op.operands)
    if op.opcode == "bitcast":
        return _fusion_writes(op.operands[0], by_name)
    return size_in_memory(by_name[op.operands[1]].shape if op.opcode == _UPDATE else op.shape)
