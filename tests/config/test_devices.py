"""The sharding of a configuration on this machine's devices."""

import pytest

from sdft_jax.config import load_config, sharding_from
from sdft_jax.errors import SdftError
from sdft_jax.sharding.rules import without_axes


def test_default_mesh_has_all_devices_on_the_fsdp_axis():
    config = load_config(None)
    sharding = sharding_from(config)
    assert dict(sharding.mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    assert sharding.rules == without_axes(config.sharding, {"expert"})


def test_mesh_and_rules_of_a_configuration():
    config = load_config(None, ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "sharding.mlp=null"])
    sharding = sharding_from(config)
    assert dict(sharding.mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert (sharding.size("mlp"), sharding.size("heads"), sharding.size("batch")) == (1, 2, 4)


def test_a_mesh_of_too_many_devices_is_refused():
    with pytest.raises(
        SdftError, match=r"mesh 1x16x1 needs 16 devices, and the number of available devices is 8"
    ):
        sharding_from(load_config(None, ["mesh.fsdp=16"]))
