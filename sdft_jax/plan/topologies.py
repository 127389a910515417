"""TPU topologies by their names, and what a chip of each generation can do.

A topology is `v5e:4x4`; v5e-4x4 and product names such as v5e-16 or v5litepod-16 mean one too. v4, v5p and
tpu7x are three-dimensional, and their product names count cores, of which a chip has two.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from sdft_jax.errors import SdftError, reason


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs; numbers are per JAX device, which is a core of v4 and tpu7x, else a chip.

    Sources: Google's system architecture pages; `hbm_gib` is what the compiler itself leaves to a program.
    """

    name: str
    hbm_gib: float
    """GiB of memory that a program may use."""
    teraflops: float
    """Peak of bfloat16 products, 1e12 a second."""
    bandwidth: float
    """Of the memory, 1e9 bytes a second."""
    clock: float
    """1e9 cycles a second."""
    dimensions: int
    devices_per_chip: int = 1
    cores_in_name: int = 1
    """What a product name counts, per chip."""


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", 15.25, 137.5, 614.0, 1.05, 3, devices_per_chip=2, cores_in_name=2),
        Generation("v5e", 15.75, 197.0, 819.0, 1.5, 2),
        Generation("v5p", 95.74, 459.0, 2765.0, 1.75, 3, cores_in_name=2),
        Generation("v6e", 31.25, 918.0, 1640.0, 1.75, 2),
        Generation("tpu7x", 94.75, 1153.5, 3690.0, 1.75, 3, devices_per_chip=2, cores_in_name=2),
    )
}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v7x": "tpu7x", "ironwood": "tpu7x"}
SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
}
"""The slices that are sold, smallest first."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of one generation."""

    generation: Generation
    shape: str

    @property
    def name(self) -> str:
        """As the compiler knows it, such as v5e:4x4."""
        return f"{self.generation.name}:{self.shape}"

    @property
    def chips(self) -> int:
        """In the whole slice."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def size(self) -> int:
        """JAX devices in the whole slice."""
        return self.chips * self.generation.devices_per_chip


def parse_topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
        SdftError: there is none of that name; the nearest ones are named.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?:[:-](\d+(?:x\d+)+)|-(\d+))", name.lower())
    generation = GENERATIONS.get(_ALIASES.get(match[1], match[1])) if match else None
    if match is None or generation is None:
        raise _unknown(name)
    shapes = SHAPES[generation.dimensions]
    if match[2]:
        if match[2] not in shapes:
            raise _unknown(name)
        return Topology(generation, match[2])
    chips = int(match[3]) / generation.cores_in_name
    found = [shape for shape in shapes if math.prod(map(int, shape.split("x"))) == chips]
    if not found:
        raise _unknown(name)
    return Topology(generation, found[0])


def all_names() -> list[str]:
    """Every topology, as the compiler names them."""
    return [f"{x.name}:{shape}" for x in GENERATIONS.values() for shape in SHAPES[x.dimensions]]


def _unknown(name: str) -> SdftError:
    near = difflib.get_close_matches(name.replace("-", ":"), all_names(), n=4, cutoff=0.3) or all_names()[:4]
    return SdftError(
        f"--topology {name}: there is no such TPU topology; the nearest are {', '.join(near)} (product names "
        "such as v5e-16 are understood too)."
    )


_ONE_HOST = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}
"""Slices whose only host has other chips than the 2x2 that the compiler takes for granted."""
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""For the compiler's library, which else looks for a TPU, locks it, and complains that there is none."""


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Devices to compile for; they can run nothing.

    Raises:
        SdftError: the TPU compiler is not installed.
    """
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    bounds = _ONE_HOST.get(topology.shape)
    single = {"chips_per_host_bounds": bounds} if bounds else {}
    return described_devices(
        "TPU", topology.name, "plan", platform="tpu", topology_name=topology.name, **single
    )


def described_devices(kind: str, name: str, extra: str, **description: Any) -> Sequence[Any]:
    """Devices of `topologies.get_topology_desc(**description)`; they can run nothing.

    Args:
        kind: GPU or TPU, as a message calls it.
        name: of what is described.
        extra: of this package, which installs the compiler.
        description: as JAX takes it.

    Raises:
        SdftError: the compiler is not installed.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**description).devices
    except Exception as error:
        raise SdftError(
            f"the {kind} compiler cannot be had for {name} ({reason(error)}): install it with "
            f"pip install 'sdft_jax[{extra}]'; it needs no {kind}."
        ) from error
