"""Names of TPU topologies, and memory, throughput and clock of each TPU generation.

The compiler's name of a topology has the form `v5e:4x4`. Names such as v5e-4x4 and product names such as
v5e-16 or v5litepod-16 are also accepted. The topologies of v4, v5p and tpu7x are three-dimensional, and their
product names count cores, two per chip.
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
    """A TPU generation. Quantities are per JAX device, which is a core on v4 and tpu7x and a chip otherwise.

    Sources: Google's system architecture pages; for `hbm_gib`, the compiler's limit for a program.
    """

    name: str
    hbm_gib: float
    """The maximum memory of a program, in GiB."""
    teraflops: float
    """Peak throughput of bfloat16 matrix products, in TFLOP/s."""
    bandwidth: float
    """Peak memory bandwidth, in GB/s."""
    clock: float
    """Clock frequency, in GHz."""
    dimensions: int
    """The number of dimensions of a topology."""
    devices_per_chip: int = 1
    """The number of JAX devices per chip."""
    cores_in_name: int = 1
    """The number of cores per chip that a product name counts; 1 if it counts chips."""


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
"""The shapes of the slices that are sold, by number of dimensions, smallest first."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice."""

    generation: Generation
    shape: str
    """The chips along each dimension, such as 4x4."""

    @property
    def name(self) -> str:
        """The compiler's name of the topology, such as v5e:4x4."""
        return f"{self.generation.name}:{self.shape}"

    @property
    def product(self) -> str:
        """The product name, such as v5e-16 or v5p-8."""
        return f"{self.generation.name}-{self.chips * self.generation.cores_in_name}"

    @property
    def chips(self) -> int:
        """The number of chips in the slice."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def size(self) -> int:
        """The number of JAX devices in the slice."""
        return self.chips * self.generation.devices_per_chip


def parse_topology(name: str) -> Topology:
    """Return the topology with the given name.

    Raises:
        SdftError: there is no such topology; the message lists similar names.
    """
    # Groups for v5e:4x4 and v5e-4x4: ("v5e", "4x4", None); for v5e-16: ("v5e", None, "16").
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
    shape = next((shape for shape in shapes if math.prod(map(int, shape.split("x"))) == chips), None)
    if shape is None:
        raise _unknown(name)
    return Topology(generation, shape)


def all_names() -> list[str]:
    """Return the compiler's names of all topologies."""
    return [f"{x.name}:{shape}" for x in GENERATIONS.values() for shape in SHAPES[x.dimensions]]


def _unknown(name: str) -> SdftError:
    near = difflib.get_close_matches(name.replace("-", ":"), all_names(), n=4, cutoff=0.3) or all_names()[:4]
    return SdftError(
        f"--topology {name}: there is no such TPU topology; the nearest are {', '.join(near)} (product names "
        "such as v5e-16 are also accepted)."
    )


_CHIPS_PER_HOST = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x4": (2, 4, 1)}
"""The chips per host of single-host slices for which the compiler's assumption, 2x2, is wrong."""
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Environment variables that keep libtpu from searching for a TPU, locking it, or logging its absence."""


def topology_devices(topology: Topology) -> Sequence[Any]:
    """Return the devices of a topology; programs can be compiled for them but not run.

    Raises:
        SdftError: the TPU compiler is not installed.
    """
    for name, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    bounds = _CHIPS_PER_HOST.get(topology.shape)
    single = {"chips_per_host_bounds": bounds} if bounds else {}
    return described_devices(
        "TPU", topology.name, "plan", platform="tpu", topology_name=topology.name, **single
    )


def described_devices(kind: str, name: str, extra: str, **description: Any) -> Sequence[Any]:
    """Return the devices of `topologies.get_topology_desc`; programs can be compiled for them but not run.

    Args:
        kind: "GPU" or "TPU", for the error message.
        name: the name of the topology, for the error message.
        extra: the extra of this package that installs the compiler.
        description: arguments of `get_topology_desc`.

    Raises:
        SdftError: the compiler is not installed.
    """
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**description).devices
    except Exception as error:
        raise SdftError(
            f"the {kind} compiler is not available for {name} ({reason(error)}): install it with "
            f"pip install -e '.[{extra}]'; it does not need a {kind}."
        ) from error
