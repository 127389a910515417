"""Meshes and sharding rules as text, and their combinations."""

import numpy as np
import pytest

from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan import candidates
from sdft_jax.plan.candidates import make_candidates, mesh_name, mesh_sizes, parse_meshes, read_rules
from sdft_jax.plan.topologies import parse_topology

CONFIG = load_config(None, ["mesh.fsdp=4", "mesh.tensor=4"])


def meshes(topology, text):
    return [tuple(mesh.values()) for mesh in parse_meshes(CONFIG, parse_topology(topology), text)]


def test_meshes_of_the_configuration_of_an_option_and_all():
    assert meshes("v5e-16", None) == [(1, 4, 4)]
    assert meshes("v5e-16", "fsdp=-1,tensor=2") == [(1, 8, 2)]
    assert meshes("v5e-16", "fsdp = 8, tensor = 2") == [(1, 8, 2)]
    assert meshes("v5e-16", "tensor=2,expert=-1") == [(1, 1, 8, 2)]
    assert meshes("v5e-4", "data=4") == [(4, 1, 1)]
    assert len(meshes("v5e-16", "all")) == 15


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("fsdp=3", "does not divide the 16 devices of v5e:4x4"),
        ("fsdp=32", "does not divide the 16 devices"),
        ("fsdp=8", "uses 8 of the 16 devices of v5e:4x4: set one axis to -1"),
        ("fsdp=-1,data=-1", "at most one axis of -1"),
        ("width=4", "give data=N,fsdp=N,tensor=N"),
        ("fsdp=four", "give data=N,fsdp=N,tensor=N"),
    ],
)
def test_invalid_mesh_is_an_error(text, sentence):
    with pytest.raises(SdftError) as error:
        meshes("v5e-16", text)
    assert sentence in str(error.value)


def test_all_meshes_are_all_factorizations():
    assert [tuple(mesh.values()) for mesh in mesh_sizes(4)] == [
        (1, 1, 4),
        (1, 2, 2),
        (1, 4, 1),
        (2, 1, 2),
        (2, 2, 1),
        (4, 1, 1),
    ]
    assert all(np.prod(list(mesh.values())) == 12 for mesh in mesh_sizes(12))


def test_name_of_a_mesh_omits_axes_of_size_one():
    assert mesh_name({"data": 1, "fsdp": 4, "tensor": 2}) == "fsdp=4,tensor=2"
    assert mesh_name({"data": 1, "fsdp": 1, "tensor": 1}) == "fsdp=1"


def test_rules_file_has_the_differences_from_the_configuration(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("")
    assert read_rules(str(path), CONFIG) == CONFIG.sharding
    path.write_text("sharding: {mlp: null, sequence: tensor, heads: null, kv_heads: null}")
    rules = read_rules(str(path), CONFIG)
    assert (rules.mlp, rules.sequence, rules.vocab) == (None, "tensor", "tensor")
    path.write_text("mpl: null")
    with pytest.raises(SdftError, match=r"--rules .*rules\.yaml: unknown key sharding\.mpl.*mlp"):
        read_rules(str(path), CONFIG)
    with pytest.raises(SdftError, match=r"--rules nowhere\.yaml: cannot be read"):
        read_rules("nowhere.yaml", CONFIG)


def test_candidates_are_all_combinations(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "topology_devices", lambda topology: list(range(topology.size)))
    plain, whole = tmp_path / "plain.yaml", tmp_path / "whole.yaml"
    plain.write_text("")
    whole.write_text("mlp: null")
    made = make_candidates(CONFIG, ["v5e-16", "v6e-16"], "fsdp=-1", [str(plain), str(whole)])
    assert [(x.name, x.rules_name, x.rules.mlp) for x in made] == [
        ("v5e:4x4 fsdp=16", "plain", "tensor"),
        ("v5e:4x4 fsdp=16", "whole", None),
        ("v6e:4x4 fsdp=16", "plain", "tensor"),
        ("v6e:4x4 fsdp=16", "whole", None),
    ]
    assert made[0].devices == tuple(range(16))
    (default,) = make_candidates(CONFIG, ["v5e-16"], None, [])
    assert (default.rules_name, default.rules) == ("", CONFIG.sharding)
