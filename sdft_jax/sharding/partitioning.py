"""The sharding of every array, derived from rules that map logical axes to mesh axes.

Every parameter and activation names its dimensions by *logical axes* ("embed", "heads", ...). `Rules` maps
them to mesh axes, so that a sharding study is `dataclasses.replace(rules, mlp=None)`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdft_jax.errors import SdftError
from sdft_jax.sharding.mesh import make_mesh
from sdft_jax.sharding.rules import MESH_AXES, Rules, mesh_axes, without_axes

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the sharding rules on it; hashable, so static in `jax.jit`."""

    mesh: Mesh
    rules: Rules = dataclasses.field(default_factory=Rules)
    """The rules without mesh axes that the mesh does not have: `expert`, if it has one device."""

    def __post_init__(self):
        if set(self.mesh.axis_names) | {"expert"} != set(MESH_AXES):
            raise SdftError(
                f"the mesh has axes {', '.join(self.mesh.axis_names)}, and the rules use "
                f"{', '.join(MESH_AXES)}: make the mesh with sdft_jax.make_mesh."
            )
        object.__setattr__(
            self, "rules", without_axes(self.rules, set(MESH_AXES) - set(self.mesh.axis_names))
        )

    @property
    def device(self) -> Any:
        """The first device of the mesh; all have one platform."""
        return self.mesh.devices.flat[0]

    def named(self, *axes: str | None) -> NamedSharding:
        """Return the sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, partition_spec(self.rules, axes))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that is replicated on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, *axes: str) -> tuple[str, ...]:
        """Return the mesh axes of more than one device that split these logical axes.

        Use it for collectives: XLA does not remove a collective over a single device, and copies its operand.
        """
        names = (name for axis in axes for name in mesh_axes(getattr(self.rules, axis)))
        return tuple(name for name in names if self.mesh.shape[name] > 1)

    def size(self, axis: str) -> int:
        """Return the number of parts that the rules split this logical axis into."""
        return math.prod(self.mesh.shape[name] for name in mesh_axes(getattr(self.rules, axis)))


def partition_spec(rules: Rules, axes: Sequence[str | None]) -> PartitionSpec:
    """Return the PartitionSpec of an array with these logical axes.

    Raises:
        SdftError: the rules map two of the axes to one mesh axis.
    """
    entries = [None if axis is None else getattr(rules, axis) for axis in axes]
    used = [name for entry in entries for name in mesh_axes(entry)]
    duplicates = sorted({name for name in used if used.count(name) > 1})
    if duplicates:
        raise SdftError(
            f"sharding rules map two dimensions of an array with axes {tuple(axes)} to mesh axis "
            f"'{duplicates[0]}': give one of them another axis or None."
        )
    return PartitionSpec(*entries)


def tree_shardings(sharding: Sharding, axes: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the NamedSharding of every leaf of a nested dictionary.

    Args:
        sharding: mesh and rules.
        axes: nested dictionary with a tuple of logical axes for each array.
        shapes: the same tree with anything that has a `.shape`.

    Raises:
        SdftError: mesh axes do not divide a dimension; the message names each logical axis for which this is
            so, and a parameter that has it.
    """
    faults: dict[str, str] = {}

    def visit(axes: Any, leaf: Any, path: str) -> Any:
        if isinstance(axes, Mapping):
            return {key: visit(axes[key], leaf[key], f"{path}.{key}" if path else key) for key in leaf}
        for axis, fault in _indivisible(sharding, path, axes, leaf.shape).items():
            faults.setdefault(axis, fault)
        return sharding.named(*axes)

    shardings = visit(axes, shapes, "")
    _raise(faults)
    return shardings


def derived_sharding(shape: Sequence[int], of: Sequence[int], sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of an array that is computed from another by reducing axes.

    Axes that have the size of the other array's are split as there. For example, of an array [8, 64, 32] with
    the spec (None, "fsdp", "tensor"), [8, 64] has the spec (None, "fsdp"), and [8, 64, 1] too.

    Args:
        shape: the shape of the array.
        of: the shape of the other array, of as many axes or of one more.
        sharding: the sharding of the other array.
    """
    entries = [*sharding.spec, *[None] * (len(of) - len(sharding.spec))]
    if len(shape) == len(of):
        kept = [
            entry if size == known else None for size, known, entry in zip(shape, of, entries, strict=True)
        ]
        return NamedSharding(sharding.mesh, PartitionSpec(*kept))
    for axis in range(len(of)):
        if tuple(shape) == (*of[:axis], *of[axis + 1 :]):
            del entries[axis]
            return NamedSharding(sharding.mesh, PartitionSpec(*entries))
    return NamedSharding(sharding.mesh, PartitionSpec())


def check_divisible(sharding: Sharding, name: str, axes: LogicalAxes, shape: Sequence[int]) -> None:
    """Raise SdftError if the mesh does not divide a dimension of an array."""
    _raise(_indivisible(sharding, name, axes, shape))


def _raise(faults: Mapping[str, str]) -> None:
    if faults:
        raise SdftError(" ".join(faults.values()))


def _indivisible(sharding: Sharding, name: str, axes: LogicalAxes, shape: Sequence[int]) -> dict[str, str]:
    """Return a sentence about each logical axis of an array that the mesh does not divide."""
    faults = {}
    for axis, size in zip(axes, shape, strict=True):
        if axis is None or size % (parts := sharding.size(axis)) == 0:
            continue
        over = "x".join(mesh_axes(getattr(sharding.rules, axis)))
        divisor = f"choose a divisor of {size} for it, or " if size > 1 else ""
        faults[axis] = (
            f"{name}: axis '{axis}' of size {size} is not divisible by the {parts} parts of mesh axis "
            f"{over}: {divisor}set sharding.{axis}=null."
        )
    return faults


def constrain(x: jax.Array, sharding: Sharding, *axes: str | None) -> jax.Array:
    """Constrain an activation with these logical axes to the sharding of the rules.

    Raises:
        SdftError: its mesh axes do not divide a dimension.
    """
    check_divisible(sharding, "activations", axes, x.shape)
    return jax.lax.with_sharding_constraint(x, sharding.named(*axes))


def release_axes(sharding: Sharding, to: str, *axes: str) -> Sharding:
    """Return a sharding whose logical `axes` no longer use the mesh axes of the logical axis `to`.

    One mesh axis then splits two dimensions in turn: with `sequence: tensor`, norms and the residual stream
    are split over positions, and the attention between them over heads. For example, with the rules
    `sequence="tensor", heads="tensor"`, `release_axes(sharding, "heads", "batch", "sequence")` has
    `sequence=None`.
    """
    taken = mesh_axes(getattr(sharding.rules, to))
    remaining = {
        axis: tuple(name for name in mesh_axes(getattr(sharding.rules, axis)) if name not in taken) or None
        for axis in axes
    }
    return dataclasses.replace(sharding, rules=dataclasses.replace(sharding.rules, **remaining))


def decoding_sharding(sharding: Sharding, sizes: Mapping[str, int]) -> Sharding:
    """Return the rules for the decode loop: weights stay on their devices, and the small activations move.

    With FSDP's rules every weight would be gathered for every token, whatever the number of rows (2.7 TB per
    device for 1,024 tokens of a 7B model on 16 chips, as counted by the compiler). Here the model width is
    not split; its mesh axes also split the feed-forward width and the vocabulary if they divide them
    (two-dimensional weight-stationary layout; Pope et al. 2022, arXiv 2211.05102).

    Args:
        sharding: the sharding for training.
        sizes: the sizes of the axes `mlp` and `vocab`.
    """
    rules = dataclasses.replace(sharding.rules, embed=None, sequence=None)
    for axis in ("mlp", "vocab"):
        taken = mesh_axes(getattr(rules, axis))
        more = tuple(name for name in mesh_axes(sharding.rules.embed) if name not in taken)
        finer = Sharding(sharding.mesh, dataclasses.replace(rules, **{axis: taken + more}))
        if more and sizes[axis] % finer.size(axis) == 0:
            rules = finer.rules
    return Sharding(sharding.mesh, rules)


def single_device() -> Sharding:
    """Return the sharding that places every array, unsplit, on this process's first device."""
    return Sharding(make_mesh(devices=jax.local_devices()[:1]))
