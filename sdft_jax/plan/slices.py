"""The number of devices, and the TPU slices, whose memory should hold a run; nothing is compiled."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh

from sdft_jax.algorithm.learner import check_batch, make_model
from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.models import Model
from sdft_jax.plan.footprint import GIB, Count, peak_phase
from sdft_jax.plan.topologies import GENERATIONS, SHAPES, Topology
from sdft_jax.sharding import Sharding

OFFERED = ("v5e", "v6e", "v5p")
"""The generations that are considered."""
SHARE = 0.9
"""The share of a device's memory that the counted arrays may take; the compiler needs the rest."""
_ONE_CHIP = "1x1x1"
"""A shape that the compiler knows but that is not sold."""


def larger_devices(config: Config, model: Model, count: Count, limit: float) -> str:
    """Return what should hold the arrays, such as `v5e-4, v6e-1 or v5p-8`; empty if nothing does.

    Args:
        config: the configuration of the run. The arrays are split by FSDP over all devices.
        model: the model on the devices that are too small.
        count: returns the arrays.
        limit: the memory of such a device, in bytes, which determines how many of them are needed if they are
            not TPUs.
    """
    present = model.sharding.mesh.size
    if model.platform == "tpu":
        names = smallest_slices(config, model, count, (present, limit))
        return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
    sizes = (size for power in range(1, 9) if (size := 2**power) > present)
    number = next((size for size in sizes if _fits(_need(config, model, count, size), limit)), None)
    return f"{number} such devices" if number else ""


def smallest_slices(
    config: Config, model: Model, count: Count, than: tuple[int, float] = (0, 0.0)
) -> list[str]:
    """Return the smallest slice of each generation that should hold the arrays, such as `v5e-4`.

    It has more devices, or more memory on a device, than those that are too small: `than` is their number and
    memory in bytes. The count is a lower bound, and may fit even on them.
    """
    found, needs = [], dict[int, float | None]()
    for generation in (GENERATIONS[name] for name in OFFERED):
        shapes = (shape for shape in SHAPES[generation.dimensions] if shape != _ONE_CHIP)
        for topology in (Topology(generation, shape) for shape in shapes):
            if topology.size not in needs:
                needs[topology.size] = _need(config, model, count, topology.size)
            memory = generation.hbm_gib * GIB
            is_larger = topology.size > than[0] or SHARE * memory > than[1]
            if is_larger and _fits(needs[topology.size], memory):
                found.append(topology.product)
                break
    return found


def _fits(need: float | None, limit: float) -> bool:
    return need is not None and need <= SHARE * limit


def _need(config: Config, model: Model, count: Count, size: int) -> float | None:
    """Return the counted bytes per device with FSDP over `size` devices; None if they do not divide the batch
    or the model.
    """
    # the arrays are counted and not placed, so that one device can stand for all
    mesh = Mesh(np.full((1, size, 1), model.sharding.device, dtype=object), ("data", "fsdp", "tensor"))
    try:
        sharding = Sharding(mesh, config.sharding)
        check_batch(config, sharding)
        other = make_model(config, model.architecture.plain, sharding, model.source)
        return peak_phase(count(config, other))[1]
    except SdftError:
        return None
