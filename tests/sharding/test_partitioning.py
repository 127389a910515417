"""Rules applied to arrays: partition specs, sizes that do not divide, and the placement of decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sdft_jax.errors import SdftError
from sdft_jax.sharding import (
    Rules,
    Sharding,
    check_divisible,
    constrain,
    decoding_sharding,
    derived_sharding,
    make_mesh,
    partition_spec,
    release_axes,
    single_device,
    tree_shardings,
)


def test_partition_specs_of_the_default_rules():
    rules = Rules()
    assert partition_spec(rules, ("batch", "sequence")) == P(("data", "fsdp", "expert"), None)
    assert partition_spec(rules, ("experts", "embed", "mlp")) == P("expert", "fsdp", "tensor")
    assert partition_spec(rules, (None, "embed", "heads", None)) == P(None, "fsdp", "tensor", None)
    assert partition_spec(rules, ("vocab", "embed")) == P("tensor", "fsdp")


def test_a_mesh_axis_splits_one_dimension_only():
    with pytest.raises(SdftError, match=r"\('batch', 'embed'\) to mesh axis 'fsdp'"):
        partition_spec(Rules(), ("batch", "embed"))
    with pytest.raises(SdftError, match="mesh axis 'tensor'"):
        partition_spec(Rules(embed="tensor"), ("vocab", "embed"))


def test_number_of_parts_of_a_logical_axis():
    sharding = Sharding(make_mesh(2, 2, 2))
    assert (sharding.size("batch"), sharding.size("embed"), sharding.size("sequence")) == (4, 2, 1)


def test_mesh_axes_of_one_device_do_not_split():
    sharding = Sharding(make_mesh(2, 1, 2))
    assert sharding.split("batch", "vocab", "sequence") == ("data", "tensor")
    assert sharding.split("embed") == ()


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_tree_shardings():
    sharding = Sharding(make_mesh(2, 2, 2))
    axes = {"embed": ("vocab", "embed"), "layers": {"q": (None, "embed", "heads", None)}}
    shardings = tree_shardings(sharding, axes, {"embed": shape(8, 4), "layers": {"q": shape(2, 4, 2, 3)}})
    assert shardings["embed"].spec == P("tensor", "fsdp")
    assert shardings["layers"]["q"].spec == P(None, "fsdp", "tensor", None)


def test_a_size_that_the_mesh_does_not_divide_is_reported_with_parameter_and_axis():
    sharding = Sharding(make_mesh(1, 1, 8))
    with pytest.raises(
        SdftError, match=r"layers\.q: axis 'heads' of size 6 .* the 8 parts of mesh axis tensor"
    ):
        tree_shardings(sharding, {"layers": {"q": ("heads",)}}, {"layers": {"q": shape(6)}})
    with pytest.raises(SdftError, match=r"x: axis 'batch' of size 6 .* mesh axis dataxfsdp"):
        tree_shardings(Sharding(make_mesh(2, 2, 2)), {"x": ("batch",)}, {"x": shape(6)})


def test_every_axis_that_the_mesh_does_not_divide_is_reported_once():
    axes = {"embed": ("vocab", "embed"), "layers": {"k": ("kv_heads",), "v": ("kv_heads",)}}
    shapes = {"embed": shape(9, 8), "layers": {"k": shape(1), "v": shape(1)}}
    with pytest.raises(SdftError) as error:
        tree_shardings(Sharding(make_mesh(1, 4, 2)), axes, shapes)
    assert str(error.value) == (
        "embed: axis 'vocab' of size 9 is not divisible by the 2 parts of mesh axis tensor: choose a divisor "
        "of 9 for it, or set sharding.vocab=null. layers.k: axis 'kv_heads' of size 1 is not divisible by "
        "the 2 parts of mesh axis tensor: set sharding.kv_heads=null."
    )


def test_check_divisible_skips_axes_without_a_rule():
    sharding = Sharding(make_mesh(2, 2, 2))
    check_divisible(sharding, "x", (None, "sequence", "batch"), (7, 7, 8))
    with pytest.raises(SdftError, match=r"x: axis 'embed' of size 7 .* or set sharding\.embed=null"):
        check_divisible(sharding, "x", (None, "embed"), (7, 7))


def test_changed_rules_change_only_their_own_axes():
    rules = dataclasses.replace(Rules(), mlp=None, vocab=("fsdp", "tensor"), embed=None)
    assert partition_spec(rules, ("embed", "mlp")) == P(None, None)
    assert partition_spec(rules, ("vocab", "embed")) == P(("fsdp", "tensor"), None)
    assert partition_spec(rules, ("heads",)) == partition_spec(Rules(), ("heads",))


def test_decoding_keeps_the_width_whole_and_splits_further_the_axes_that_divide():
    training = Sharding(make_mesh(1, 4, 2), Rules(sequence="tensor"))
    rules = decoding_sharding(training, {"mlp": 24, "vocab": 100}).rules  # 8 parts divide 24 but not 100
    assert partition_spec(rules, ("embed", "mlp")) == P(None, ("tensor", "fsdp"))
    assert partition_spec(rules, ("vocab", "embed")) == P("tensor", None)
    changed = {"embed": None, "sequence": None, "mlp": ("tensor", "fsdp")}
    assert rules == dataclasses.replace(training.rules, **changed)


def test_axes_release_the_mesh_axes_that_another_axis_uses():
    sharding = Sharding(make_mesh(2, 2, 2), Rules(sequence="tensor", batch=("data", "fsdp")))
    inner = release_axes(sharding, "heads", "sequence")
    assert inner.mesh == sharding.mesh
    assert partition_spec(inner.rules, ("batch", "sequence", "heads")) == P(("data", "fsdp"), None, "tensor")
    assert release_axes(sharding, "embed", "batch", "sequence").rules == Rules(
        sequence=("tensor",), batch=("data",), experts=None
    )
    unchanged = dataclasses.replace(sharding, rules=Rules(sequence=("tensor",), heads=None))
    assert release_axes(unchanged, "heads", "sequence") == unchanged


def test_shardings_are_hashable():
    assert hash(Sharding(make_mesh(2, 2, 2))) == hash(Sharding(make_mesh(2, 2, 2)))
    assert Sharding(make_mesh(2, 2, 2)) != Sharding(make_mesh(8))


def test_constrain_places_an_array_and_changes_no_value():
    x = jnp.arange(16.0).reshape(8, 2)
    placed = constrain(x, Sharding(make_mesh(2, 2, 2)), "batch", None)
    assert placed.sharding.spec == P(("data", "fsdp"), None)
    np.testing.assert_array_equal(placed, x)
    with pytest.raises(SdftError, match=r"activations: axis 'batch' of size 6 .* 4 parts"):
        constrain(x[:6], Sharding(make_mesh(2, 2, 2)), "batch", None)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 64, 32), (None, "fsdp", "tensor")),
        ((8, 64, 1), (None, "fsdp", None)),
        ((8, 64), (None, "fsdp")),
        ((8, 32), (None, "tensor")),
        ((64, 32), ("fsdp", "tensor")),
        ((8, 1), ()),
        ((), ()),
        ((7, 64), ()),
    ],
)
def test_an_array_that_was_reduced_is_split_along_the_axes_that_remain(shape, spec):
    of = NamedSharding(make_mesh(2, 2, 2), P(None, "fsdp", "tensor"))
    assert derived_sharding(shape, (8, 64, 32), of) == NamedSharding(of.mesh, P(*spec))


def test_axes_without_an_entry_are_not_split():
    of = NamedSharding(make_mesh(2, 2, 2), P("fsdp"))
    assert derived_sharding((4, 8, 1), (4, 8, 16), of).spec == P("fsdp", None, None)
    assert derived_sharding((8, 16), (4, 8, 16), of).spec == P(None, None)


def test_single_device():
    assert single_device().replicated.device_set == {jax.devices()[0]}
    assert single_device().device == jax.devices()[0]


def test_a_mesh_with_other_axes_is_refused():
    with pytest.raises(
        SdftError,
        match=r"the mesh has axes x, and the rules use data, fsdp, expert, tensor: make .* with sdft_jax",
    ):
        Sharding(jax.make_mesh((4,), ("x",)))
