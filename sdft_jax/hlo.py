"""Counts in a compiled program's text; loops count all their trips, which XLA's own counts leave out."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"^\w+\[([\d,]*)\]")
_DOT = re.compile(r"^(\w+\[[\d,]*\])\S* dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+),")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class _Op:
    name: str
    text: str

    @property
    def is_while(self) -> bool:
        return " while(" in self.text

    @property
    def is_conditional(self) -> bool:
        return " conditional(" in self.text


def matmul_flops(text: str, unknown_trips: float = 1.0) -> float:
    """Floating-point operations of all matrix products in a compiled program (2 a multiply-add).

    Args:
        text: `compiled.as_text()`.
        unknown_trips: trips of loops whose number the compiler does not know, such as a decode loop that may
            end early.

    Of a conditional the costlier branch counts.
    """
    computations = _computations(text)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)

    @functools.cache
    def count(name: str) -> float:
        ops = computations[name][1]
        shapes = {op.name: _dimensions(op.text) for op in ops}
        return sum(_dot(op, shapes) + _called(op) for op in ops)

    def _called(op: _Op) -> float:
        branches = [
            name.strip().lstrip("%") for found in _BRANCHES.findall(op.text) for name in found.split(",")
        ]
        called = [count(name) for name in [*_CALLED.findall(op.text), *branches] if name in computations]
        if op.is_conditional:
            return max(called, default=0.0)
        if op.is_while:
            known = _TRIPS.search(op.text)
            return sum(called) * (float(known[1]) if known else unknown_trips)
        return sum(called)

    return count(entry)


def _computations(text: str) -> Mapping[str, tuple[bool, list[_Op]]]:
    """Name -> (whether the program starts there, its operations)."""
    found: dict[str, tuple[bool, list[_Op]]] = {}
    ops: list[_Op] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            ops = []
            found[head[1]] = (line.startswith("ENTRY"), ops)
        elif op := _OP.match(line):
            ops.append(_Op(op[1], op[2]))
    return found


def _dimensions(text: str) -> tuple[int, ...]:
    shape = _SHAPE.match(text)
    return tuple(int(size) for size in shape[1].split(",") if size) if shape else ()


def _dot(op: _Op, shapes: Mapping[str, tuple[int, ...]]) -> float:
    dot = _DOT.match(op.text)
    if dot is None:
        return 0.0
    contracted = _CONTRACTED.search(op.text)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * math.prod(_dimensions(dot[1])) * math.prod(shapes[dot[2]][axis] for axis in axes)
