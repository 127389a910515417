"""Bytes that the kernels of a compiled GPU program read and write.

Everything is counted at a kernel's border: inside of a fusion nothing goes through memory. Where a kernel
reads slices of an array, or writes into one that is there already, the slices count. What stays in the GPU's
cache from one kernel to the next counts too, so that this is the most that memory has to move.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from sdft_jax.plan.hlo import Op, read_computations, size_of, total

_OPERATION = re.compile(r"^(.*?) ([a-z][a-z\-]*)\(([^)]*)\)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_CONTROL = {"call", "conditional", "while"}
_NO_KERNEL = _CONTROL | {"after-all", "bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_INTO = "dynamic-update-slice"


@dataclasses.dataclass(frozen=True)
class _Parsed:
    """One operation."""

    code: str
    size: float
    """Bytes of the result."""
    operands: Sequence[str]


def memory_traffic(text: str) -> dict[str, float]:
    """Bytes read and written, by scope, counted as `hlo.total` does.

    Args:
        text: `compiled.as_text()` for a GPU.
    """
    computations = {name: ops for name, (_, ops) in read_computations(text).items()}
    parsed = {op.name: _parse(op) for ops in computations.values() for op in ops}
    inside = {
        inner.name
        for ops in computations.values()
        for op in ops
        if parsed[op.name].code not in _CONTROL
        for called in _CALLED.findall(op.text)
        for inner in computations.get(called, ())
    }

    def cost(op: Op, _: Mapping[str, tuple[int, ...]]) -> Counter:
        one = parsed[op.name]
        if op.name in inside or one.code in _NO_KERNEL:
            return Counter()
        called = _CALLED.search(op.text) if one.code == "fusion" else None
        if called:
            names = [inner.name for inner in computations[called[1]]]
            return Counter({op.scope: _read_by(names, parsed) + _written(names[-1], parsed)})
        return Counter({op.scope: _alone(one, parsed)})

    return dict(total(text, cost))


def _parse(op: Op) -> _Parsed:
    found = _OPERATION.match(op.text)
    return _Parsed(found[2], size_of(found[1]), _OPERAND.findall(found[3])) if found else _Parsed("", 0.0, ())


def _alone(one: _Parsed, parsed: Mapping[str, _Parsed]) -> float:
    """Of an operation that is a kernel of its own."""
    if one.code in _SLICES:
        return 2 * one.size
    if one.code == _INTO:
        return 2 * parsed[one.operands[1]].size
    return one.size + sum(parsed[name].size for name in one.operands)


def _read_by(names: Sequence[str], parsed: Mapping[str, _Parsed]) -> float:
    """What a fusion of these operations reads of its parameters."""
    users = defaultdict(list)
    for name in names:
        for operand in parsed[name].operands:
            users[operand].append(name)

    def read(name: str) -> Iterator[float]:
        """What each user takes of it."""
        for user in users[name]:
            one = parsed[user]
            first = one.operands[0] == name
            if one.code == "bitcast":
                yield from read(user)
            elif first and one.code in _SLICES:
                yield one.size
            elif not (first and one.code == _INTO):
                yield parsed[name].size

    return sum(min(sum(read(name)), parsed[name].size) for name in names if parsed[name].code == "parameter")


def _written(name: str, parsed: Mapping[str, _Parsed]) -> float:
    """What a fusion with this root writes."""
    one = parsed[name]
    if one.code == "tuple":
        return sum(_written(operand, parsed) for operand in one.operands)
    if one.code == "bitcast":
        return _written(one.operands[0], parsed)
    return parsed[one.operands[1]].size if one.code == _INTO else one.size
