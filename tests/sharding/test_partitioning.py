"""Meshes, rules and their mistakes; all of it on the host."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sdft_jax.errors import SdftError
from sdft_jax.sharding import (
    Rules,
    Sharding,
    constrain,
    for_decoding,
    give_way,
    make_mesh,
    partition_spec,
    single_device,
    tree_shardings,
)


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


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (dict(data=3, fsdp=-1), r"mesh\.fsdp=-1: 8 devices are not divisible by the other axes \(3\)"),
        (dict(data=16, fsdp=-1), r"mesh\.fsdp=-1: 8 devices are not divisible"),
        (dict(data=4, fsdp=4), r"mesh 4x4x1 needs 16 devices and there are 8"),
        (dict(data=-1, fsdp=-1), r"at most one of them is -1"),
        (dict(tensor=0), r"each axis is a positive number"),
        (dict(tensor=-2), r"each axis is a positive number"),
    ],
)
def test_mesh_mistakes(axes, message):
    with pytest.raises(SdftError, match=message):
        make_mesh(**axes)


def test_partition_specs_of_the_default_rules():
    rules = Rules()
    assert partition_spec(rules, ("batch", "sequence", "activation")) == P(("data", "fsdp"), None, None)
    assert partition_spec(rules, (None, "embed", "heads", None)) == P(None, "fsdp", "tensor", None)
    assert partition_spec(rules, ("vocab", "embed")) == P("tensor", "fsdp")


def test_a_mesh_axis_splits_one_dimension_only():
    with pytest.raises(SdftError, match=r"\('batch', 'embed'\) to mesh axis 'fsdp'"):
        partition_spec(Rules(), ("batch", "embed"))
    with pytest.raises(SdftError, match="mesh axis 'tensor'"):
        partition_spec(Rules(embed="tensor"), ("vocab", "embed"))


def test_rules_name_mesh_axes():
    with pytest.raises(SdftError, match=r"sharding\.mlp: there is no mesh axis 'model'"):
        Rules(mlp="model")


def test_sizes():
    sharding = Sharding(make_mesh(2, 2, 2))
    assert (sharding.size("batch"), sharding.size("embed"), sharding.size("sequence")) == (4, 2, 1)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_tree_shardings():
    sharding = Sharding(make_mesh(2, 2, 2))
    axes = {"embed": ("vocab", "embed"), "layers": {"q": (None, "embed", "heads", None)}}
    found = tree_shardings(sharding, axes, {"embed": shape(8, 4), "layers": {"q": shape(2, 4, 2, 3)}})
    assert found["embed"].spec == P("tensor", "fsdp")
    assert found["layers"]["q"].spec == P(None, "fsdp", "tensor", None)


def test_sizes_that_do_not_divide_name_parameter_and_axis():
    sharding = Sharding(make_mesh(1, 1, 8))
    with pytest.raises(
        SdftError, match=r"layers\.q: axis 'heads' of size 6 .* the 8 parts of mesh axis tensor"
    ):
        tree_shardings(sharding, {"layers": {"q": ("heads",)}}, {"layers": {"q": shape(6)}})
    with pytest.raises(SdftError, match=r"x: axis 'batch' of size 6 .* mesh axis dataxfsdp"):
        tree_shardings(Sharding(make_mesh(2, 2, 2)), {"x": ("batch",)}, {"x": shape(6)})


def test_a_study_is_one_replace():
    rules = dataclasses.replace(Rules(), mlp=None, vocab=("fsdp", "tensor"), embed=None)
    assert partition_spec(rules, ("embed", "mlp")) == P(None, None)
    assert partition_spec(rules, ("vocab", "embed")) == P(("fsdp", "tensor"), None)
    assert partition_spec(rules, ("heads",)) == partition_spec(Rules(), ("heads",))


def test_decoding_keeps_the_width_whole_and_splits_what_it_divides_further():
    training = Sharding(make_mesh(1, 4, 2), Rules(sequence="tensor"))
    rules = for_decoding(training, {"mlp": 24, "vocab": 100}).rules  # 8 parts divide 24, and not 100
    assert partition_spec(rules, ("embed", "mlp")) == P(None, ("tensor", "fsdp"))
    assert partition_spec(rules, ("vocab", "embed")) == P("tensor", None)
    changed = {"embed": None, "sequence": None, "mlp": ("tensor", "fsdp")}
    assert rules == dataclasses.replace(training.rules, **changed)


def test_an_axis_gives_way_to_another_where_both_want_the_same_part_of_the_mesh():
    sharding = Sharding(make_mesh(2, 2, 2), Rules(sequence="tensor", batch=("data", "fsdp")))
    inner = give_way(sharding, "heads", "sequence")
    assert inner.mesh == sharding.mesh
    assert partition_spec(inner.rules, ("batch", "sequence", "heads")) == P(("data", "fsdp"), None, "tensor")
    assert give_way(sharding, "embed", "batch", "sequence").rules == Rules(
        sequence=("tensor",), batch=("data",)
    )
    kept = dataclasses.replace(sharding, rules=Rules(sequence=("tensor",), heads=None))
    assert give_way(kept, "heads", "sequence") == kept


def test_shardings_are_static_arguments():
    assert hash(Sharding(make_mesh(2, 2, 2))) == hash(Sharding(make_mesh(2, 2, 2)))
    assert Sharding(make_mesh(2, 2, 2)) != Sharding(make_mesh(8))


def test_constrain():
    x = jnp.arange(16.0).reshape(8, 2)
    assert constrain(x, None, "batch", None) is x
    placed = constrain(x, Sharding(make_mesh(2, 2, 2)), "batch", None)
    assert placed.sharding.spec == P(("data", "fsdp"), None)
    np.testing.assert_array_equal(placed, x)


def test_single_device():
    assert single_device().replicated.device_set == {jax.devices()[0]}


def test_a_mesh_with_other_axes_is_refused():
    with pytest.raises(SdftError, match=r"axes x: make one with sdft_jax\.make_mesh"):
        Sharding(jax.make_mesh((4,), ("x",)))
