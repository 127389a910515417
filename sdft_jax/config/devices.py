"""The devices of a configuration: its mesh and its sharding rules."""

from __future__ import annotations

from sdft_jax.config.config import Config
from sdft_jax.sharding import Sharding, make_mesh


def sharding_from(config: Config) -> Sharding:
    """Mesh and rules of a configuration."""
    return Sharding(make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor), config.sharding)
