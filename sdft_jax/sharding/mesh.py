"""The device mesh, with axes data, fsdp and tensor, and expert if it has several devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from sdft_jax.errors import SdftError
from sdft_jax.sharding.rules import MESH_AXES


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, expert: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh over `devices` (default: all devices of all processes).

    One axis may be -1: the number of devices that the other axes leave. A mesh of fewer devices uses the
    first ones. The mesh has the axis `expert` only if its size is above 1.

    Raises:
        SdftError: the axes are not sizes, or need more devices than there are.
    """
    available = list(jax.devices() if devices is None else devices)
    shape = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    free = [name for name, size in shape.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in shape.values()):
        raise SdftError(f"mesh {shape}: set each axis to a positive number, and at most one of them to -1.")
    known = math.prod(size for size in shape.values() if size != -1)
    if free:
        if len(available) % known:
            raise SdftError(
                f"mesh.{free[0]}=-1: the number of available devices, {len(available)}, is not divisible by "
                f"the product of the other axes, {known}: change one of them, for example to 1."
            )
        shape[free[0]] = len(available) // known
    shape = {axis: size for axis, size in shape.items() if axis != "expert" or size > 1}
    total = math.prod(shape.values())
    if total > len(available):
        raise SdftError(
            f"mesh {_times(shape)} needs {total} devices, and the number of available devices is "
            f"{len(available)}: lower {', '.join('mesh.' + name for name in MESH_AXES)}; mesh.data=1 "
            "mesh.fsdp=-1 mesh.tensor=1 mesh.expert=1 uses all devices."
        )
    sizes = tuple(shape.values())
    if total == len(available):
        grid = mesh_utils.create_device_mesh(sizes, available, allow_split_physical_axes=True)
    else:
        grid = np.asarray(available[:total]).reshape(sizes)
    return Mesh(grid, tuple(shape))


def _times(shape: Mapping[str, int]) -> str:
    return "x".join(str(size) for size in shape.values())
