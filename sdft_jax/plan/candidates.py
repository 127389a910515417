"""The topologies, meshes and sharding rules for which an update is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config import Config, from_dict, to_dict
from sdft_jax.config.overrides import merge, read_yaml
from sdft_jax.errors import SdftError
from sdft_jax.plan.topologies import Topology, parse_topology, topology_devices
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.sharding.rules import MESH_AXES, Rules

MeshSizes = Mapping[str, int]
"""Mesh axis -> number of devices along it."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A topology, a mesh of its devices, and sharding rules."""

    topology: Topology
    devices: Sequence[Any]
    """The devices of the topology; programs can be compiled for them but not run."""
    mesh: MeshSizes
    rules_name: str
    """The name of the rules in reports; empty for those of the configuration."""
    rules: Rules

    @property
    def name(self) -> str:
        """The topology and the mesh, such as `v5e:4x4 fsdp=4,tensor=4`."""
        return f"{self.topology.name} {mesh_name(self.mesh)}"

    @property
    def sharding(self) -> Sharding:
        """The rules on the mesh of devices."""
        return Sharding(make_mesh(**self.mesh, devices=self.devices), self.rules)


def make_candidates(
    config: Config, topologies: Sequence[str], mesh: str | None, rules: Sequence[str]
) -> list[Candidate]:
    """Return every combination of topologies, meshes and rules.

    Args:
        config: the source of the mesh and the rules if the other arguments do not give them.
        topologies: names of topologies.
        mesh: the argument `text` of `parse_meshes`.
        rules: YAML files for `read_rules`; empty for the configuration's rules.

    Raises:
        SdftError: a topology is unknown, a mesh does not have the topology's number of devices, a rules file
            cannot be read, or the TPU compiler is not installed.
    """
    rule_sets = {Path(path).stem: read_rules(path, config) for path in rules} or {"": config.sharding}
    parsed = [parse_topology(name) for name in topologies]
    meshes = {topology: parse_meshes(config, topology, mesh) for topology in parsed}
    devices = {topology: tuple(topology_devices(topology)) for topology in parsed}
    return [
        Candidate(topology, devices[topology], sizes, name, rule_set)
        for topology in parsed
        for sizes in meshes[topology]
        for name, rule_set in rule_sets.items()
    ]


def parse_meshes(config: Config, topology: Topology, text: str | None) -> list[MeshSizes]:
    """Return the meshes that `text` describes on a topology.

    Args:
        config: its `mesh` section is used if `text` is None.
        topology: the mesh must use all of its devices.
        text: `data=N,fsdp=N,tensor=N,expert=N` (each is optional, and one may be -1), or `all` for every
            mesh with one device along expert.

    Raises:
        SdftError: the text is not a mesh, or the mesh does not have the topology's number of devices.
    """
    if text == "all":
        return mesh_sizes(topology.size)
    given = {axis: getattr(config.mesh, axis) for axis in MESH_AXES} if text is None else _parse_mesh(text)
    free = [axis for axis in MESH_AXES if given[axis] == -1]
    known = math.prod(size for size in given.values() if size != -1)
    if len(free) > 1 or min(given.values()) < -1 or known < 1 or topology.size % known:
        raise SdftError(
            f"mesh {given} does not divide the {topology.size} devices of {topology.name}: give --mesh with "
            "at most one axis of -1, or --mesh all."
        )
    if not free and known != topology.size:
        raise SdftError(
            f"mesh {given} uses {known} of the {topology.size} devices of {topology.name}: set one axis to "
            "-1, or give --mesh all."
        )
    sizes = given | dict.fromkeys(free, topology.size // known)
    return [{axis: size for axis, size in sizes.items() if axis != "expert" or size > 1}]  # as in make_mesh


def mesh_sizes(devices: int) -> list[MeshSizes]:
    """Return every mesh of this number of devices that does not split experts."""
    return [
        {"data": data, "fsdp": fsdp, "tensor": devices // (data * fsdp)}
        for data in range(1, devices + 1)
        if devices % data == 0
        for fsdp in range(1, devices // data + 1)
        if (devices // data) % fsdp == 0
    ]


def mesh_name(mesh: MeshSizes) -> str:
    """Return the mesh as --mesh takes it, such as `fsdp=4,tensor=4`, without axes of size 1."""
    return ",".join(f"{axis}={mesh[axis]}" for axis in MESH_AXES if mesh.get(axis, 1) > 1) or "fsdp=1"


def read_rules(path: str, config: Config) -> Rules:
    """Read sharding rules from a YAML file that has the rules that differ from the configuration's.

    Raises:
        SdftError: the file cannot be read, or contains something other than rules.
    """
    try:
        tree = read_yaml(path)
    except SdftError as error:
        raise SdftError(f"--rules {path}: cannot be read: {error}") from None
    changes = {"sharding": tree.get("sharding", tree)}
    return from_dict(merge(to_dict(config), changes), f"--rules {path}").sharding


def _parse_mesh(text: str) -> dict[str, int]:
    sizes = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if axis not in MESH_AXES or not size.lstrip("-").isdigit():
            raise SdftError(
                f"--mesh {text}: give data=N,fsdp=N,tensor=N,expert=N (each is optional, and one may be -1), "
                "or all."
            )
        sizes[axis] = int(size)
    return sizes
