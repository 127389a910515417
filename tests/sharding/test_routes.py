"""Shards travel between devices, and come back as the array that they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sdft_jax.sharding import make_mesh
from sdft_jax.sharding.routes import assemble, positions, route, send, stacked

SPECS = {
    "split": PartitionSpec("fsdp", "tensor"),
    "split over two axes": PartitionSpec(("data", "fsdp"), None),
    "replicated": PartitionSpec(),
    "split on one axis": PartitionSpec(None, "tensor"),
}


def array(spec, dtype=jnp.float32):
    sharding = NamedSharding(make_mesh(data=2, fsdp=2, tensor=2), spec)
    values = np.arange(64).reshape(8, 8) - 32  # with both signs
    return jax.device_put(jnp.asarray(values, dtype), sharding), sharding


def shard_of(x, device):
    return next(np.asarray(shard.data) for shard in x.addressable_shards if shard.device == device)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_devices_receive_the_shards_of_their_senders(spec):
    x, sharding = array(spec)
    devices = list(sharding.mesh.devices.flat)
    along = ((0, 3), (3, 5), (7, 0))
    received = send(x, sharding, along)
    assert received.sharding.is_equivalent_to(stacked(sharding), received.ndim)
    for sender, to in along:
        np.testing.assert_array_equal(np.asarray(received)[to], shard_of(x, devices[sender]))
    for to in {*range(8)} - {to for _, to in along}:
        assert not np.asarray(received)[to].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint32])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_array_is_assembled_from_its_own_shards_and_copies_on_other_devices(spec, dtype):
    """Devices 0 to 3 still have their shards; those of devices 4 to 7 are on devices 2 to 5."""
    x, sharding = array(spec, dtype)
    stays, moved = tuple((i, i) for i in range(4)), tuple((i, i - 2) for i in range(4, 8))
    own, copies = send(x, sharding, stays), send(x, sharding, moved)
    back = assemble(own, copies, sharding, stays, tuple((to, sender) for sender, to in moved))
    assert back.sharding.is_equivalent_to(sharding, x.ndim)
    assert np.asarray(back).tobytes() == np.asarray(x).tobytes()


def test_scalars_travel_too():
    sharding = NamedSharding(make_mesh(data=2, fsdp=2, tensor=2), PartitionSpec())
    x = jax.device_put(jnp.int32(7), sharding)
    everyone = tuple((i, (i + 3) % 8) for i in range(8))
    assert np.asarray(send(x, sharding, everyone)).tolist() == [7] * 8


def test_route_of_one_process_is_device_by_device():
    _, sharding = array(PartitionSpec())
    assert positions(sharding) == {0: list(range(8))}
    assert route(sharding, {0: 0}) == tuple((i, i) for i in range(8))
    assert route(sharding, {}) == ()
