"""Shards sent from the devices of one process to those of another, whatever the mesh."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

Route = tuple[tuple[int, int], ...]
"""Pairs (from, to) of positions in `mesh.devices.flat`; each device sends once at most, and receives once."""


def positions(sharding: NamedSharding) -> dict[int, list[int]]:
    """Return process -> the positions of its devices in `mesh.devices.flat`."""
    found: dict[int, list[int]] = {}
    for position, device in enumerate(sharding.mesh.devices.flat):
        found.setdefault(device.process_index, []).append(position)
    return found


def devices_of(sharding: NamedSharding, process: int) -> list[jax.Device]:
    """Return the devices of a process, in the order of `mesh.devices.flat`."""
    return [device for device in sharding.mesh.devices.flat if device.process_index == process]


def route(sharding: NamedSharding, receivers: Mapping[int, int]) -> Route:
    """Return the route from each process to its receiver, device by device in their order.

    Example: with processes 0 and 1 of two devices each, `{0: 1}` is ((0, 2), (1, 3)).
    """
    place = positions(sharding)
    return tuple(
        pair
        for sender, to in sorted(receivers.items())
        for pair in zip(place[sender], place[to], strict=True)
    )


def stacked(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of an array whose row d is the shard of device d."""
    return NamedSharding(sharding.mesh, PartitionSpec(sharding.mesh.axis_names))


@functools.partial(jax.jit, static_argnames=("sharding", "along"))
def send(x: Shaped[Array, "..."], sharding: NamedSharding, along: Route) -> Shaped[Array, "D ..."]:
    """Return in row d the shard that device d receives; zeros if it receives none.

    Args:
        x: an array with this sharding.
        sharding: the sharding; its mesh has D devices.
        along: the route.
    """
    axes = sharding.mesh.axis_names
    return jax.shard_map(
        lambda shard: lax.ppermute(shard[None], axes, along),
        mesh=sharding.mesh,
        in_specs=sharding.spec,
        out_specs=stacked(sharding).spec,
        check_vma=False,
    )(x)


@functools.partial(jax.jit, static_argnames=("sharding", "first_route", "second_route"))
def assemble(
    first: Shaped[Array, "D ..."],
    second: Shaped[Array, "D ..."],
    sharding: NamedSharding,
    first_route: Route,
    second_route: Route,
) -> Shaped[Array, "..."]:
    """Return the array whose shards are rows of two stacks, each sent along its route.

    A device takes its shard from the first route if that ends there, and else from the second.
    """
    axes, mesh = sharding.mesh.axis_names, sharding.mesh
    is_first = [False] * mesh.size
    for _, to in first_route:
        is_first[to] = True

    def choose(one: Array, two: Array) -> Array:
        one, two = lax.ppermute(one, axes, first_route), lax.ppermute(two, axes, second_route)
        return jnp.where(jnp.asarray(is_first)[lax.axis_index(axes)], one, two)[0]

    return jax.shard_map(
        choose, mesh=mesh, in_specs=stacked(sharding).spec, out_specs=sharding.spec, check_vma=False
    )(first, second)
