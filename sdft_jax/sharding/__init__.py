"""Logical axes to devices: rules, mesh, and arrays that span processes."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.sharding.arrays import to_global, to_host
    from sdft_jax.sharding.mesh import make_mesh
    from sdft_jax.sharding.partitioning import (
        Sharding,
        check_divisible,
        constrain,
        decoding_sharding,
        derived_sharding,
        partition_spec,
        release_axes,
        single_device,
        tree_shardings,
    )
    from sdft_jax.sharding.rules import MESH_AXES, Rules, mesh_axes

__all__ = [
    "MESH_AXES",
    "Rules",
    "Sharding",
    "check_divisible",
    "constrain",
    "decoding_sharding",
    "derived_sharding",
    "make_mesh",
    "mesh_axes",
    "partition_spec",
    "release_axes",
    "single_device",
    "to_global",
    "to_host",
    "tree_shardings",
]
