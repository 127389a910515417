"""Arrays that span devices, made from host arrays and read back."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdft_jax.sharding import to_global, to_host

SHARDING = NamedSharding(Mesh(np.asarray(jax.devices()), "x"), PartitionSpec("x"))
TREE = {"a": np.arange(16).reshape(8, 2), "b": np.arange(8) % 2 == 0}


def test_global_arrays_have_the_sharding_and_read_back_as_the_host_arrays():
    placed = to_global(TREE, SHARDING)
    for name, x in placed.items():
        assert x.sharding == SHARDING
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, TREE[name][shard.index])
    restored = to_host(placed)
    assert all(isinstance(x, np.ndarray) for x in restored.values())
    assert {name: x.tolist() for name, x in restored.items()} == {
        name: x.tolist() for name, x in TREE.items()
    }


def test_host_arrays_and_replicated_arrays_are_read_as_they_are():
    replicated = to_global(TREE, NamedSharding(SHARDING.mesh, PartitionSpec()))
    for tree in (TREE, replicated):
        jax.tree.map(np.testing.assert_array_equal, to_host(tree), TREE)
