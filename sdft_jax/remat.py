"""What the backward pass computes again, where `model.remat=auto` leaves it to the memory that there is."""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

import jax

from sdft_jax.config import Config
from sdft_jax.distributed import broadcast
from sdft_jax.memory import Widths, fullest, update_arrays
from sdft_jax.models import ModelConfig
from sdft_jax.sharding import Sharding
from sdft_jax.state import make_model

KEPT: Final = "dots_no_batch"
"""The fastest: for a 7B model on v5p-8 it takes 4 % off the estimated step, where `hidden` takes nothing."""
MARGIN = 1.2
"""Memory that is wanted for each byte of the arrays of known shapes. In the rows of `sdft bench tpu` the TPU
compiler needed 0.92 to 1.14 bytes."""


def choose_remat(
    config: Config, shape: ModelConfig, sharding: Sharding, limit: float | None, widths: Widths | None = None
) -> Config:
    """The configuration with `model.remat=auto` decided: matrix products are kept where they have room.

    Args:
        config: of the run.
        shape: of the model.
        sharding: the mesh.
        limit: bytes of a device; None, as a CPU tells, gives `full`, which is as fast there.
        widths: of the longest rows; None for the longest that are allowed.
    """
    if config.model.remat != "auto":
        return config

    def decided(remat: Literal["dots_no_batch", "full"]) -> Config:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))

    kept = decided(KEPT)
    if limit is None:
        return decided("full")
    _, needed = fullest(update_arrays(kept, make_model(kept, shape, sharding), widths))
    return kept if MARGIN * needed <= limit else decided("full")


def device_memory() -> float | None:
    """Bytes that a device of this run has for arrays, as process 0 sees it; None where it does not tell."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if jax.process_count() > 1:  # all must compile the same program
        limit = float(broadcast(str(limit or 0))) or None
    return limit
