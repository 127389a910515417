"""Bytes that a compiled GPU or TPU program reads from memory and writes to it.

Only the operands and results of a kernel count: values inside a fused kernel do not go through memory, nor do
those that a TPU program keeps on the chip. If a kernel reads slices of an array, or updates a slice of an
array in place, only the slices count. A kernel counts each operand once, however often it reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sdft_jax.plan.hlo import Op, read_computations, size_in_memory, size_of, total

_CONTROL = {"call", "conditional", "while"}
_NO_KERNEL = _CONTROL | {"after-all", "bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATE = "dynamic-update-slice"
_VIEWS = {"bitcast", "get-tuple-element"}

Computations = Mapping[str, Sequence[Op]]


def memory_traffic(text: str, kept: float = 0.0) -> dict[str, float]:
    """Return the bytes read and written by scope; while loops and conditionals count as in `hlo.total`.

    Args:
        text: `compiled.as_text()` for a GPU or a TPU.
        kept: size in bytes up to which a value that a kernel makes stays in the cache of a GPU until another
            kernel reads it, and does not count; slices that are updated in place do.
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

    def stays(name: str) -> bool:
        source = by_name[name]
        is_small = size_in_memory(source.shape) <= kept
        while source.opcode in _VIEWS:
            source = by_name[source.operands[0]]
        return is_small and source.opcode not in _NO_KERNEL and not _updates(source, by_name, computations)

    def moved(name: str) -> float:
        return 0.0 if stays(name) else size_in_memory(by_name[name].shape)

    def cost(op: Op, _: Mapping[str, tuple[int, ...]]) -> Counter:
        if op.name in fused or op.opcode in _NO_KERNEL or op.opcode.endswith("-done"):
            return Counter()
        if op.opcode == "fusion" and op.called:
            ops = computations[op.called[0]]
            inputs = [
                x for x in ops if x.opcode == "parameter" and not stays(op.operands[int(x.operands[0])])
            ]
            reads = sum(_read_by(ops, x, computations) for x in inputs)
            return Counter({op.scope: reads + _fusion_writes(ops[-1].name, by_name, kept)})
        return Counter({op.scope: _single_traffic(op, by_name, moved)})

    return dict(total(text, cost))


def _updates(op: Op, by_name: Mapping[str, Op], computations: Computations) -> bool:
    """Return True if a kernel updates a slice of one of its operands in place."""
    if op.opcode == "fusion" and op.called:
        return _updates(computations[op.called[0]][-1], by_name, computations)
    if op.opcode in {"bitcast", "tuple"}:
        return any(_updates(by_name[name], by_name, computations) for name in op.operands)
    return op.opcode == _UPDATE


def _single_traffic(op: Op, by_name: Mapping[str, Op], moved: Callable[[str], float]) -> float:
    """Return the bytes that an operation outside of fusions reads and writes, given those of a value."""
    if op.opcode.endswith("-start") and op.opcode != "all-reduce-start":  # the shape is (operand, result)
        is_slice = op.opcode.removesuffix("-start") in _SLICES
        return size_of(op.shape, is_start=True) if is_slice else size_in_memory(op.shape)
    if op.opcode in _SLICES:
        return (size_of(op.shape) if moved(op.operands[0]) else 0) + moved(op.name)
    if op.opcode == _UPDATE:
        new = op.operands[1]
        return (size_of(by_name[new].shape) if size_in_memory(op.shape) else 0) + moved(new)
    return moved(op.name) + sum(map(moved, op.operands))


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


def _fusion_writes(root: str, by_name: Mapping[str, Op], kept: float) -> float:
    """Return the bytes that a fusion with this root writes; see `memory_traffic` for `kept`."""
    op = by_name[root]
    size = size_in_memory(op.shape)
    if op.opcode in {"bitcast", "tuple"}:
        return sum(_fusion_writes(operand, by_name, kept) for operand in op.operands) if size else 0.0
    if op.opcode == _UPDATE:
        return size_in_memory(by_name[op.operands[1]].shape) if size else 0.0
    return size if size > kept else 0.0
