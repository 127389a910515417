"""Which meshes a configuration can have on a topology, in order of how well they do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdft_jax.config import Config, from_dict, to_dict
from sdft_jax.config.overrides import merge, read_yaml
from sdft_jax.errors import SdftError
from sdft_jax.models import ModelConfig
from sdft_jax.plan.advice import advise
from sdft_jax.plan.estimate import Estimate, estimate
from sdft_jax.plan.program import mesh_sizes, model_shape
from sdft_jax.plan.topologies import Topology, parse_topology, topology_devices
from sdft_jax.sharding.rules import MESH_AXES, Rules

Mesh = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One thing to compile."""

    topology: Topology
    mesh: Mesh
    rules_name: str
    rules: Rules

    @property
    def title(self) -> str:
        """For progress bars."""
        return f"{self.topology.name} {mesh_name(self.mesh)}"


def mesh_name(mesh: Mesh) -> str:
    """Such as `fsdp=4,tensor=4`, as --mesh takes it; axes of size 1 are left out."""
    return ",".join(f"{axis}={mesh[axis]}" for axis in MESH_AXES if mesh[axis] > 1) or "fsdp=1"


def candidates(
    config: Config, topologies: Sequence[str], mesh: str | None, rules: Sequence[str]
) -> list[Candidate]:
    """Everything that was asked for.

    Args:
        config: its mesh section is taken where `mesh` is None.
        topologies: names.
        mesh: `data=..,fsdp=..,tensor=..` (one may be -1), or `all`.
        rules: YAML files with sections of `sharding`; none: the configuration's.

    Raises:
        SdftError: an unknown topology, a mesh that is not one, a rules file that cannot be read.
    """
    named = {Path(path).stem: read_rules(path, config) for path in rules} or {"": config.sharding}
    found = []
    for topology in map(parse_topology, topologies):
        for sizes in _meshes(config, topology, mesh):
            found += [Candidate(topology, sizes, name, rules) for name, rules in named.items()]
    return found


def _meshes(config: Config, topology: Topology, text: str | None) -> list[Mesh]:
    if text == "all":
        return mesh_sizes(topology.size)
    given = {axis: getattr(config.mesh, axis) for axis in MESH_AXES} if text is None else _parse_mesh(text)
    free = [axis for axis in MESH_AXES if given[axis] == -1]
    known = math.prod(size for size in given.values() if size != -1)
    if len(free) > 1 or min(given.values()) < -1 or known < 1 or topology.size % known:
        raise SdftError(
            f"mesh {given} does not divide the {topology.size} devices of {topology.name}: give --mesh, with "
            "at most one axis of -1, or --mesh all."
        )
    if not free and known != topology.size:
        raise SdftError(
            f"mesh {given} leaves devices of {topology.name} idle, which has {topology.size}: set one axis "
            "to -1, or give --mesh all."
        )
    return [given | dict.fromkeys(free, topology.size // known)]


def _parse_mesh(text: str) -> dict[str, int]:
    found = dict.fromkeys(MESH_AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis.strip() not in MESH_AXES or not size.strip().lstrip("-").isdigit():
            raise SdftError(
                f"--mesh {text}: give data=N,fsdp=N,tensor=N (each optional, one may be -1), or all."
            )
        found[axis.strip()] = int(size)
    return found


def read_rules(path: str, config: Config) -> Rules:
    """Sharding rules of a YAML file, which holds what differs from the configuration's."""
    try:
        tree = read_yaml(Path(path))
    except SdftError as error:
        raise SdftError(f"--rules {path}: cannot be read: {error}") from None
    rules = tree.get("sharding", tree)
    return from_dict(merge(to_dict(config), {"sharding": rules}), f"--rules {path}").sharding


def plan(
    config: Config, every: Sequence[Candidate], largest: bool, show: Callable[[int, str], None]
) -> tuple[list[Estimate], list[str]]:
    """Estimates, best first, and why meshes were left out.

    Args:
        config: what is trained.
        every: from `candidates`.
        largest: also find the largest batch, by compiling each once more, and compile what is advised.
        show: progress, (done, title of what is under way).

    Raises:
        SdftError: a single mesh that does not divide the model or the batch; of several, those are left out.
    """
    shape = model_shape(config)
    devices = {candidate.topology: topology_devices(candidate.topology) for candidate in every}
    found: list[Estimate] = []
    left_out: list[str] = []
    for done, candidate in enumerate(every):
        show(done, candidate.title)
        try:
            found.append(_one(config, shape, candidate, devices[candidate.topology], largest))
        except SdftError as error:
            if len(every) == 1:
                raise
            left_out.append(f"{candidate.title}: {error}")
    found.sort(key=_rank)
    for one in {one.topology: one for one in reversed(found)}.values():  # the best of each
        show(len(every), f"{one.topology}: what would make it smaller")
        candidate = next(x for x in every if (x.topology.name, x.mesh, x.rules_name) == _identity(one))
        advice = advise(
            config,
            shape,
            one,
            candidate.topology,
            devices[candidate.topology],
            candidate.rules,
            compiling=largest,
        )
        found[found.index(one)] = dataclasses.replace(one, advice=advice)
    show(len(every), "")
    return found, left_out


def _identity(one: Estimate) -> tuple[str, Mesh, str]:
    return one.topology, one.mesh, one.rules


def _rank(one: Estimate) -> tuple[Any, ...]:
    """What fits first, the fastest first; then what needs least."""
    return (one.topology, not one.fits, one.total_seconds if one.fits else one.peak, one.state)


def _one(
    config: Config, shape: ModelConfig, candidate: Candidate, devices: Sequence[Any], largest: bool
) -> Estimate:
    arguments = (shape, candidate.topology, devices, candidate.mesh, candidate.rules, candidate.rules_name)
    first = estimate(config, *arguments)
    if not largest or first.state > first.limit:
        return first
    other = _other_batch(config, first)
    second = estimate(_with_batch(config, other), *arguments) if other else None
    if second is None or not (first.temporaries and second.temporaries):
        return dataclasses.replace(first, largest_batch=first.batch if first.fits else None)
    return dataclasses.replace(first, largest_batch=largest_batch(first, second))


def _other_batch(config: Config, first: Estimate) -> int | None:
    """Twice the batch where there is room, else half of it; None where a mesh allows neither."""
    if first.fits:
        return 2 * first.batch
    parts = first.mesh["data"] * first.mesh["fsdp"]
    half = first.batch // 2
    return half if half and half % parts == 0 else None


def _with_batch(config: Config, batch: int) -> Config:
    micro = config.train.micro_batch
    if micro and batch % micro:
        micro = batch
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, batch_size=batch, micro_batch=micro)
    )


def largest_batch(one: Estimate, other: Estimate) -> int | None:
    """Where the line through two peaks meets the limit, in multiples that the mesh divides."""
    per_row = (other.peak - one.peak) / (other.batch - one.batch)
    parts = one.mesh["data"] * one.mesh["fsdp"]
    if per_row <= 0:
        return None
    rows = one.batch + (one.limit - one.peak) / per_row
    return max(int(rows // parts) * parts, 0)
