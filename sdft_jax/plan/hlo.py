"""Counts in a compiled program's text; loops count all their trips, which XLA's own counts leave out."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_DOT = re.compile(r"^(\w+\[[\d,]*\])\S* dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+),")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COMPARE = re.compile(r"compare\((?:\S+ )?%?([\w.\-]+), (?:\S+ )?%?([\w.\-]+)\), direction=LT")
_CONSTANT = re.compile(r"^s32\[\]\S* constant\((-?\d+)\)")
_ADD = re.compile(r"^s32\[\]\S* add\((?:\S+ )?%?([\w.\-]+), (?:\S+ )?%?([\w.\-]+)\)")
_COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(-start)?\("
)
_SCOPE = re.compile(r'op_name="([^"]*)"')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SCATTER = re.compile(r"calls=%?(all-reduce-scatter[\w.\-]*)")
_GROUPS = re.compile(r"replica_groups=.*?(?=, \w+=|$)")
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_GROUP_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Op:
    """One line of a program."""

    name: str
    text: str
    """What stands after the equals sign."""

    @property
    def scope(self) -> str:
        """Where in the source's named scopes it comes from, such as `jit(update)/rollout/mul`."""
        found = _SCOPE.search(self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, with all its repetitions."""

    kind: str
    scope: str
    times: float
    bytes: float
    """That a device receives, over all repetitions."""


def matmul_flops(text: str) -> float:
    """`matmul_flops_by_scope` of the whole program."""
    return sum(matmul_flops_by_scope(text).values())


def matmul_flops_by_scope(text: str) -> dict[str, float]:
    """Floating-point operations of all matrix products in a program (2 a multiply-add), as `total` counts.

    Args:
        text: `compiled.as_text()`, or `lowered.as_text(dialect="hlo", debug_info=True)`.
    """

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        count = _dot(op, shapes)
        return Counter({op.scope: count}) if count else Counter()

    return dict(total(text, cost))


def estimated_cycles(text: str) -> dict[str, float]:
    """The TPU compiler's own cycle estimates, by scope; kernels and waiting for other chips have none."""

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        found = _CYCLES.search(op.text)
        return Counter({op.scope: float(found[1])}) if found else Counter()

    return dict(total(text, cost))


def collectives(text: str) -> list[Collective]:
    """Every exchange between devices; one that goes on beside computations counts where it begins."""

    def cost(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> Counter:
        found = _COLLECTIVE.search(op.text)
        if found is None:
            return Counter()
        size = _received(found[1], size_of(op.text.split(found[0])[0], bool(found[2])), _group(op.text))
        return Counter({(found[1], op.scope, size): 1.0})

    found = total(text, cost)
    return [Collective(kind, scope, times, times * size) for (kind, scope, size), times in found.items()]


def total(text: str, cost: Callable[[Op, Mapping[str, tuple[int, ...]]], Counter]) -> Counter:
    """Costs of all operations, each times how often it runs.

    A loop that may end early counts as if it did not, and one whose trips nothing tells as one trip. Of a
    conditional the costlier branch counts.
    """
    computations = read_computations(text)
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)

    @functools.cache
    def count(name: str) -> Counter:
        ops = computations[name][1]
        shapes = {op.name: _dimensions(op.text) for op in ops}
        return _sum(x for op in ops for x in (cost(op, shapes), called(op)))

    def called(op: Op) -> Counter:
        branches = [
            name.strip().lstrip("%") for found in _BRANCHES.findall(op.text) for name in found.split(",")
        ]
        names = [*_CALLED.findall(op.text), *branches]
        found = [
            _under(op.scope, count(name))
            for name in names
            if name in computations and not _is_piece(op.name, name)
        ]
        if " conditional(" in op.text:
            return max(found, key=lambda costs: sum(costs.values()), default=Counter())
        if " while(" not in op.text:
            return _sum(found)
        trips = _trips(op, computations)
        times = 1.0 if trips is None else trips
        return Counter({key: times * value for key, value in _sum(found).items()})

    return count(entry)


def _under(scope: str, costs: Counter) -> Counter:
    """Costs by scope, in whole: before compilation a scope is told from its caller's on."""
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


def _is_piece(caller: str, called: str) -> bool:
    """Whether this only carries on an exchange that has begun before, beside a computation."""
    return caller.startswith("async-collective-done") or called.startswith("async_collective_fusion")


def _trips(op: Op, computations: Mapping[str, tuple[bool, list[Op]]]) -> float | None:
    """Most trips of a loop: told by the compiler, or the bound that its condition compares a count with."""
    if told := _TRIPS.search(op.text):
        return float(told[1])
    condition = _CONDITION.search(op.text)
    names = [condition[1]] if condition else []
    for name in names:
        ops = {x.name: x.text for x in computations[name][1]}
        for text in ops.values():
            names += [called for called in _CALLED.findall(text) if called in computations]  # fusions
            if found := _COMPARE.search(text):
                counted, bound = (ops.get(name, "") for name in found.groups())
                if limit := _CONSTANT.match(bound):
                    return float(limit[1]) - _offset(counted, ops)
    return None


def _offset(text: str, ops: Mapping[str, str]) -> float:
    """The constant that is added to a count before it is compared."""
    added = _ADD.match(text)
    values = [_CONSTANT.match(ops.get(name, "")) for name in added.groups()] if added else []
    return sum(float(value[1]) for value in values if value)


def read_computations(text: str) -> Mapping[str, tuple[bool, list[Op]]]:
    """Name -> (whether the program starts there, its operations)."""
    found: dict[str, tuple[bool, list[Op]]] = {}
    ops: list[Op] = []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            ops = []
            found[head[1]] = (line.startswith("ENTRY"), ops)
        elif op := _OP.match(line):
            ops.append(Op(op[1], op[2]))
    return {name: (entry, [_unfused(op, found) for op in ops]) for name, (entry, ops) in found.items()}


def _unfused(op: Op, computations: Mapping[str, tuple[bool, list[Op]]]) -> Op:
    """A fusion of an all-reduce and slices of it as what a TPU makes of it: a reduce-scatter."""
    fused = _SCATTER.search(op.text)
    if fused is None:
        return op
    groups = next(_GROUPS.findall(x.text)[0] for x in computations[fused[1]][1] if " all-reduce(" in x.text)
    return Op(op.name, op.text.replace(" fusion(", " reduce-scatter(").replace(fused[0], groups))


def _dimensions(text: str) -> tuple[int, ...]:
    shape = _ARRAY.match(text)
    return tuple(int(size) for size in shape[3].split(",") if size) if shape else ()


def _dot(op: Op, shapes: Mapping[str, tuple[int, ...]]) -> float:
    dot = _DOT.match(op.text)
    if dot is None:
        return 0.0
    contracted = _CONTRACTED.search(op.text)
    axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
    return 2.0 * math.prod(_dimensions(dot[1])) * math.prod(shapes[dot[2]][axis] for axis in axes)


def size_of(shape: str, is_start: bool = False) -> float:
    """Bytes of a result; that of the start of an asynchronous exchange lists operand, then result."""
    arrays = _ARRAY.findall(shape)
    if is_start:
        arrays = arrays[1:2]
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) * (int(bits) / 8 if bits else 1)
        for _, bits, sizes in arrays
    )


def _received(kind: str, size: float, group: int) -> float:
    """Bytes that each of `group` devices receives for a result of `size` bytes."""
    others = (group - 1) / group
    return {
        "all-gather": others,
        "all-to-all": others,
        "ragged-all-to-all": others,
        "all-reduce": 2 * others,
        "reduce-scatter": group - 1,
        "collective-permute": 1.0,
    }[kind] * size


def _group(text: str) -> int:
    """How many devices exchange with each other."""
    if listed := _GROUP_LIST.search(text):
        return len(listed[1].split(","))
    if iota := _GROUP_IOTA.search(text):
        return int(iota[1])
    if mesh := _GROUP_MESH.search(text):
        sizes = dict(part.replace("'", "").split("=") for part in mesh[1].split(","))
        return math.prod(int(sizes[name.strip(" '")]) for name in mesh[2].split(",") if name.strip())
    return 2
