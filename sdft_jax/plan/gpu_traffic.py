"""Bytes that the kernels of a compiled GPU program read from memory and write to it.

Only the operands and results of a kernel count: values inside a fused kernel do not go through memory. If a
kernel reads slices of an array, or updates a slice of an array in place, only the slices count. Bytes that
stay in the GPU's cache from one kernel to the next count too, so the result is an upper bound.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from sdft_jax.plan.hlo import Op, read_computations, size_of, total

_CONTROL = {"call", "conditional", "while"}
_NO_KERNEL = _CONTROL | {"after-all", "bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATE = "dynamic-update-slice"


def memory_traffic(text: str) -> dict[str, float]:
    """Return the bytes read and written by scope; while loops and conditionals count as in `hlo.total`.

    Args:
        text: `compiled.as_text()` for a GPU.
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
        if op.name in fused or op.opcode in _NO_KERNEL:
            return Counter()
        if op.opcode == "fusion" and op.called:
            names = [inner.name for inner in computations[op.called[0]]]
            return Counter({op.scope: _fusion_reads(names, by_name) + _fusion_writes(names[-1], by_name)})
        return Counter({op.scope: _single_traffic(op, by_name)})

    return dict(total(text, cost))


def _single_traffic(op: Op, by_name: Mapping[str, Op]) -> float:
    """Return the bytes that an operation outside of fusions reads and writes."""
    if op.opcode in _SLICES:
        return 2 * size_of(op.shape)
    if op.opcode == _UPDATE:
        return 2 * size_of(by_name[op.operands[1]].shape)
    return size_of(op.shape) + sum(size_of(by_name[name].shape) for name in op.operands)


def _fusion_reads(names: Sequence[str], by_name: Mapping[str, Op]) -> float:
    """Return the bytes that a fusion of these operations reads from its parameters."""
    users = defaultdict(list)
    for name in names:
        for operand in by_name[name].operands:
            users[operand].append(by_name[name])

    def reads(name: str) -> Iterator[float]:
        """Yield the bytes that each user of a value reads from it."""
        for user in users[name]:
            is_first = user.operands[0] == name
            if user.opcode == "bitcast":
                yield from reads(user.name)
            elif is_first and user.opcode in _SLICES:
                yield size_of(user.shape)
            elif not (is_first and user.opcode == _UPDATE):
                yield size_of(by_name[name].shape)

    parameters = [name for name in names if by_name[name].opcode == "parameter"]
    return sum(min(sum(reads(name)), size_of(by_name[name].shape)) for name in parameters)


def _fusion_writes(root: str, by_name: Mapping[str, Op]) -> float:
    """Return the bytes that a fusion with this root writes."""
    op = by_name[root]
    if op.opcode == "tuple":
        return sum(_fusion_writes(operand, by_name) for operand in op.operands)
    if op.opcode == "bitcast":
        return _fusion_writes(op.operands[0], by_name)
    return size_of(by_name[op.operands[1]].shape if op.opcode == _UPDATE else op.shape)
