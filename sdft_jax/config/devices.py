"""The mesh and the sharding rules of a configuration."""

from __future__ import annotations

import dataclasses

from sdft_jax.config.config import Config
from sdft_jax.sharding import Sharding, make_mesh


def sharding_from(config: Config) -> Sharding:
    """Return the mesh of the configuration on this machine's devices, with its rules."""
    return Sharding(make_mesh(**dataclasses.asdict(config.mesh)), config.sharding)
