"""Sharding rules as plain data: the mesh axes of one rule, and axes that the mesh does not have."""

import dataclasses

import pytest

from sdft_jax.errors import SdftError
from sdft_jax.sharding import MESH_AXES, Rules, mesh_axes


@pytest.mark.parametrize(
    ("entry", "axes"), [(None, ()), ("fsdp", ("fsdp",)), (("data", "fsdp"), ("data", "fsdp"))]
)
def test_mesh_axes_of_a_rule(entry, axes):
    assert mesh_axes(entry) == axes


def test_default_rules_use_every_mesh_axis():
    rules = Rules()
    used = {axis for field in dataclasses.fields(rules) for axis in mesh_axes(getattr(rules, field.name))}
    assert used == set(MESH_AXES)


def test_rules_with_an_unknown_mesh_axis_are_refused():
    with pytest.raises(
        SdftError,
        match=r"sharding\.mlp: the mesh has no axis 'model': use one of data, fsdp, expert, tensor",
    ):
        Rules(mlp="model")
    with pytest.raises(SdftError, match=r"sharding\.batch: the mesh has no axis 'rows'"):
        Rules(batch=("data", "rows"))
