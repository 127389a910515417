"""The shapes of device meshes and the errors of impossible ones."""

import jax
import numpy as np
import pytest

from sdft_jax.errors import SdftError
from sdft_jax.sharding import Sharding, make_mesh


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (dict(), (1, 1, 1)),
        (dict(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (dict(fsdp=-1), (1, 8, 1)),
        (dict(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (dict(data=8, tensor=-1), (8, 1, 1)),
        (dict(data=2), (2, 1, 1)),
    ],
)
def test_mesh_shapes(axes, shape):
    mesh = make_mesh(**axes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert len(set(mesh.devices.flat)) == np.prod(shape)


def test_a_mesh_uses_the_devices_that_it_is_given():
    devices = jax.devices()[2:6]
    assert set(make_mesh(fsdp=-1, devices=devices).devices.flat) == set(devices)
    assert list(make_mesh(data=2, devices=devices).devices.flat) == devices[:2]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            dict(data=3, fsdp=-1),
            r"mesh\.fsdp=-1: the number of available devices, 8, is not divisible by the product of the "
            r"other axes, 3: change",
        ),
        (dict(data=16, fsdp=-1), r"mesh\.fsdp=-1: the number of available devices, 8, is not divisible"),
        (
            dict(data=4, fsdp=4),
            r"mesh 4x4x1 needs 16 devices, and the number of available devices is 8: lower mesh\.data",
        ),
        (dict(data=-1, fsdp=-1), r"at most one of them to -1"),
        (dict(tensor=0), r"set each axis to a positive number"),
        (dict(tensor=-2), r"set each axis to a positive number"),
    ],
)
def test_impossible_meshes_are_refused(axes, message):
    with pytest.raises(SdftError, match=message):
        make_mesh(**axes)


def test_an_axis_of_experts_exists_if_it_has_several_devices():
    assert make_mesh(2, 2, 2).axis_names == ("data", "fsdp", "tensor")
    mesh = make_mesh(1, -1, 2, 2)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 2, "expert": 2}
    assert Sharding(mesh).split("batch") == ("fsdp", "expert")
    assert Sharding(make_mesh(2, 2, 2)).rules.batch == ("data", "fsdp")
    assert Sharding(make_mesh(2, 2, 2)).rules.experts is None
