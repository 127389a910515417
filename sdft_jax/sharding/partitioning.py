"""Where arrays live: a mesh with axes data, fsdp and tensor, and rules from logical to mesh axes.

Every parameter and activation names its dimensions by *logical axes* ("embed", "heads", ...). `Rules`
maps those to mesh axes, so a sharding study is `dataclasses.replace(rules, mlp=None)`.
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
from sdft_jax.sharding.rules import MESH_AXES, Rules, mesh_axes

LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh and the rules on it. Hashable, so that it can be static in a jitted function."""

    mesh: Mesh
    rules: Rules = dataclasses.field(default_factory=Rules)

    def __post_init__(self):
        if set(self.mesh.axis_names) != set(MESH_AXES):
            raise SdftError(
                f"the mesh has axes {', '.join(self.mesh.axis_names)}: make one with sdft_jax.make_mesh, "
                f"whose axes are {', '.join(MESH_AXES)}."
            )

    def named(self, *axes: str | None) -> NamedSharding:
        """Sharding of one array whose dimensions are these logical axes."""
        return NamedSharding(self.mesh, partition_spec(self.rules, axes))

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, *axes: str) -> tuple[str, ...]:
        """Mesh axes of more than one device over which the rules split these logical axes.

        For collectives: over a single device XLA does not leave them out, and copies.
        """
        names = (name for axis in axes for name in mesh_axes(getattr(self.rules, axis)))
        return tuple(name for name in names if self.mesh.shape[name] > 1)

    def size(self, axis: str) -> int:
        """Into how many parts the rules split this logical axis."""
        return math.prod(self.mesh.shape[name] for name in mesh_axes(getattr(self.rules, axis)))


def partition_spec(rules: Rules, axes: Sequence[str | None]) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes; refuses a mesh axis that is used twice."""
    entries = [None if axis is None else getattr(rules, axis) for axis in axes]
    used = [name for entry in entries for name in mesh_axes(entry)]
    twice = sorted({name for name in used if used.count(name) > 1})
    if twice:
        raise SdftError(
            f"sharding rules map two dimensions of an array with axes {tuple(axes)} to mesh axis "
            f"'{twice[0]}': give one of them another axis or None."
        )
    return PartitionSpec(*entries)


def tree_shardings(sharding: Sharding, axes: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """NamedSharding for every leaf of a nested dictionary.

    Args:
        sharding: mesh and rules.
        axes: nested dictionary with a tuple of logical axes for each array.
        shapes: the same tree with anything that has a `.shape`.

    Raises:
        SdftError: a dimension that its mesh axes do not divide, named by parameter and axis.
    """

    def visit(axes: Any, leaf: Any, path: str) -> Any:
        if isinstance(axes, Mapping):
            return {key: visit(axes[key], leaf[key], f"{path}.{key}" if path else key) for key in leaf}
        check_divisible(sharding, path, axes, leaf.shape)
        return sharding.named(*axes)

    return visit(axes, shapes, "")


def check_divisible(sharding: Sharding, name: str, axes: LogicalAxes, shape: Sequence[int]) -> None:
    """Refuse an array with a dimension that the mesh does not divide."""
    for axis, size in zip(axes, shape, strict=True):
        if axis is None:
            continue
        parts = sharding.size(axis)
        if size % parts:
            over = "x".join(mesh_axes(getattr(sharding.rules, axis)))
            raise SdftError(
                f"{name}: axis '{axis}' of size {size} is not divisible by the {parts} parts of mesh axis "
                f"{over}: choose a divisor of {size} for it, or set sharding.{axis}=null."
            )


def constrain(x: jax.Array, sharding: Sharding | None, *axes: str | None) -> jax.Array:
    """Tell the compiler where an activation lives; nothing to say without a sharding.

    Raises:
        SdftError: a dimension that its mesh axes do not divide.
    """
    if sharding is None:
        return x
    check_divisible(sharding, "activations", axes, x.shape)
    return jax.lax.with_sharding_constraint(x, sharding.named(*axes))


def give_way(sharding: Sharding, to: str, *axes: str) -> Sharding:
    """Rules under which logical `axes` leave to another one the mesh axes that it uses.

    So one mesh axis serves two of an array's dimensions in turn: with `sequence: tensor`, norms and the
    residual stream are split over positions, and attention between them over heads.
    """
    taken = mesh_axes(getattr(sharding.rules, to))
    left = {
        axis: tuple(name for name in mesh_axes(getattr(sharding.rules, axis)) if name not in taken) or None
        for axis in axes
    }
    return dataclasses.replace(sharding, rules=dataclasses.replace(sharding.rules, **left))


def for_decoding(sharding: Sharding, sizes: Mapping[str, int]) -> Sharding:
    """Rules inside the decode loop: weights stay where they are and activations, which are small, travel.

    Under FSDP every weight would be gathered at every token, however few rows there are (of a 7B model on 16
    chips 2.7 TB per device for 1,024 tokens, by the compiler's count). Here the width is whole, and the mesh
    axes that split it split the feed-forward and the vocabulary further instead, where they divide them (2D
    weight-stationary; Pope et al. 2022).

    Args:
        sharding: that of training.
        sizes: of the axes `mlp` and `vocab`.
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
    """The trivial sharding: everything on the first device."""
    return Sharding(make_mesh(devices=jax.devices()[:1]))
