"""Names of topologies, and error messages for unknown names."""

from pathlib import Path

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.plan.topologies import all_names, parse_topology, topology_devices

# From Google's tables of slices. Product name: (topology, chips, JAX devices).
PRODUCTS = {
    "v5e-1": ("v5e:1x1", 1, 1),
    "v5e-16": ("v5e:4x4", 16, 16),
    "v5litepod-256": ("v5e:16x16", 256, 256),
    "v6e-8": ("v6e:2x4", 8, 8),
    "v5p-8": ("v5p:2x2x1", 4, 4),
    "v5p-128": ("v5p:4x4x4", 64, 64),
    "v4-16": ("v4:2x2x2", 8, 16),
    "V5E-4": ("v5e:2x2", 4, 4),
    "ironwood-64": ("tpu7x:2x4x4", 32, 64),
    "v6e-4x4": ("v6e:4x4", 16, 16),
    "v5litepod-2x4": ("v5e:2x4", 8, 8),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_product_name_gives_the_topology(product):
    topology = parse_topology(product)
    assert (topology.name, topology.chips, topology.size) == PRODUCTS[product]


def slices():
    """Return the slices of the launch scripts: (product name, topology, hosts, chips per host)."""
    lines = (Path(__file__).parents[2] / "launch_tpu" / "accelerators.txt").read_text().splitlines()
    rows = [line.split()[:4] for line in lines if not line.startswith("#")]
    return [(name, topology, int(hosts), int(chips)) for name, topology, hosts, chips in rows]


@pytest.mark.parametrize(("name", "shape", "hosts", "chips"), slices())
def test_slice_of_the_launch_scripts_has_a_topology(name, shape, hosts, chips):
    topology = parse_topology(name)
    assert (topology.shape, topology.chips) == (shape, hosts * chips)
    assert parse_topology(f"{name.partition('-')[0]}-{shape}") == topology


def test_compiler_devices_have_as_many_hosts_as_the_launch_scripts_start():
    pytest.importorskip("libtpu")
    for name, _, hosts, _ in slices():
        try:
            devices = topology_devices(parse_topology(name))
        except SdftError as error:  # libtpu 0.0.23 does not know tpu7x
            if "Invalid TPU external name" not in str(error):
                raise
            continue
        assert len({device.process_index for device in devices}) == hosts, name


@pytest.mark.parametrize("name", all_names())
def test_topology_name_is_unchanged_by_parsing(name):
    assert parse_topology(name).name == name


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("v5e:4x5", "v5e:4x4"),
        ("v5e-15", "v5e:"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v6:4x4", "v6e:4x4"),
        ("gpu", "v"),
    ],
)
def test_error_for_an_unknown_name_lists_similar_names(name, similar):
    with pytest.raises(SdftError) as error:
        parse_topology(name)
    message = str(error.value)
    assert message.startswith(f"--topology {name}: there is no such TPU topology; the nearest are ")
    assert similar in message


def test_compiler_returns_every_device_of_the_topology():
    pytest.importorskip("libtpu")
    for name in ("v5e:2x2", "v5e:1x1", "v5p:2x2x1", "v4:2x2x1"):
        topology = parse_topology(name)
        assert len(topology_devices(topology)) == topology.size
