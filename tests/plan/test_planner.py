"""Which meshes are tried, how they are ranked, and the largest batch by a line through two peaks."""

import dataclasses

import pytest

from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan.estimate import Estimate, _temporaries, phase_of
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.planner import _rank, candidates, largest_batch, mesh_name

CONFIG = load_config(None, ["mesh.fsdp=4", "mesh.tensor=4"])


def meshes(topology, mesh, *rules):
    return [tuple(x.mesh.values()) for x in candidates(CONFIG, [topology], mesh, rules)]


def test_the_configurations_mesh_a_given_one_and_all():
    assert meshes("v5e-16", None) == [(1, 4, 4)]
    assert meshes("v5e-16", "fsdp=-1,tensor=2") == [(1, 8, 2)]
    assert meshes("v5e-4", "data=4") == [(4, 1, 1)]
    assert len(meshes("v5e-16", "all")) == 15


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        ("fsdp=3", "does not divide the 16 devices of v5e:4x4"),
        ("fsdp=32", "does not divide the 16 devices"),
        ("fsdp=8", "leaves devices of v5e:4x4 idle, which has 16: set one axis to -1"),
        ("fsdp=-1,data=-1", "at most one axis of -1"),
        ("width=4", "give data=N,fsdp=N,tensor=N"),
        ("fsdp=four", "give data=N,fsdp=N,tensor=N"),
    ],
)
def test_a_mesh_that_is_none_is_refused(mesh, sentence):
    with pytest.raises(SdftError) as caught:
        meshes("v5e-16", mesh)
    assert sentence in str(caught.value)


def test_rules_are_what_their_files_change(tmp_path):
    first, second = tmp_path / "plain.yaml", tmp_path / "whole.yaml"
    first.write_text("")
    second.write_text("sharding: {mlp: null, sequence: tensor, heads: null, kv_heads: null}")
    found = candidates(CONFIG, ["v5e-16"], None, [str(first), str(second)])
    assert [x.rules_name for x in found] == ["plain", "whole"]
    assert found[0].rules == CONFIG.sharding
    assert (found[1].rules.mlp, found[1].rules.sequence, found[1].rules.vocab) == (None, "tensor", "tensor")
    second.write_text("mpl: null")
    with pytest.raises(SdftError, match=r"--rules .*whole\.yaml: unknown key sharding\.mpl.*mlp"):
        candidates(CONFIG, ["v5e-16"], None, [str(second)])
    with pytest.raises(SdftError, match=r"--rules nowhere\.yaml: cannot be read"):
        candidates(CONFIG, ["v5e-16"], None, ["nowhere.yaml"])


def made(peak, batch=32, seconds=1.0, **changes):
    one = Estimate(
        "v5e:4x4",
        {"data": 1, "fsdp": 4, "tensor": 4},
        "",
        batch,
        16 * GIB,
        {
            "parameters": 2 * GIB,
            "optimizer": 4 * GIB,
            "teacher": 2 * GIB,
            "KV cache": 1 * GIB,
            "decoding weights": 3 * GIB,
        },
        peak=peak * GIB,
        temporaries={"student": 3 * GIB, "decode": GIB},
        seconds={"decode": seconds},
    )
    return dataclasses.replace(one, **changes)


def test_what_fits_comes_first_and_the_fastest_of_it():
    slow, fast = made(12, seconds=3), made(14, seconds=2)
    over, refused = made(20, seconds=1), made(30, refusal="needs 30 GiB")
    assert sorted([refused, over, slow, fast], key=_rank) == [fast, slow, over, refused]
    assert [x.fits for x in (fast, over, refused)] == [True, False, False]


def test_the_largest_batch_is_where_the_line_meets_the_limit():
    # 10 GiB at 32 rows, 12 at 64: 1/16 GiB a row, so 6 GiB more are 96 rows more.
    assert largest_batch(made(10, 32), made(12, 64)) == 128
    # 20 GiB at 32 rows, 14 at 16: 3/8 GiB a row, 10.67 rows too many; the mesh divides multiples of 4.
    assert largest_batch(made(20, 32), made(14, 16)) == 20
    assert largest_batch(made(18, 4), made(17.9, 2)) == 0


def test_what_dominates():
    assert made(14).dominant == "optimizer 4.0 GiB"
    assert made(14, temporaries={"divergence": 5 * GIB}).dominant == "divergence 5.0 GiB"


def test_names_of_meshes():
    assert mesh_name({"data": 1, "fsdp": 4, "tensor": 2}) == "fsdp=4,tensor=2"
    assert mesh_name({"data": 1, "fsdp": 1, "tensor": 1}) == "fsdp=1"


def test_phases_are_those_of_the_named_scopes():
    scopes = {
        "jit(precise)/rollout/prefill/while/body/dot": "prefill",
        "jit(precise)/rollout/decode/while/body/while/body/dot": "decode",
        "jit(precise)/rollout/convert_element_type": "decode",
        "jit(precise)/learn/jvp(teacher)/while/body/dot": "teacher",
        "jit(precise)/learn/jvp(student)/while/body/dot": "student",
        "jit(precise)/learn/transpose(jvp(student))/while/body/dot": "backward",
        "jit(precise)/learn/jvp()/shard_map/while": "divergence",
        "jit(precise)/optimizer/mul": "optimizer",
        "jit(precise)/optimizer/ema/mul": "optimizer",
        "": "other",
    }
    assert {scope: phase_of(scope) for scope in scopes} == scopes


def test_what_lives_at_the_peak_is_told_apart_by_phase_and_not_counted_twice():
    text = """
  %copy.1 = f32[8] copy(%a), metadata={op_name="jit(f)/rollout/decode/copy"}
  %dot.2 = f32[8] dot(%a, %b), metadata={op_name="jit(f)/learn/jvp(student)/dot"}
  ROOT %add.3 = f32[8] add(%a, %b), metadata={op_name="jit(f)/optimizer/add"}
"""
    live = """
  Live ranges at 12 (peak):
    copy.1{}: 400 bytes (cumulative: 400 bytes)
    dot.2{0}: 300 bytes (cumulative: 700 bytes)
    param.9{}: 5000 bytes (cumulative: 5700 bytes)
    add.3{}: 5000 bytes (cumulative: 10700 bytes)

  Stack trace breakdown for peak usage: 10 700 bytes
    copy.7{}: 99 bytes
"""
    assigned = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <2 x @0> (size=512,offset=0): s32[]
allocation 1: size 5000, parameter 15, shape |f32[8]| at ShapeIndex {}, maybe-live-out:
 value: <77 param.9 @0> (size=5000,offset=0): f32[8]
 value: <78 add.3 @0> (size=5000,offset=0): f32[8]
allocation 2: size 700:
 value: <79 copy.1 @0> (size=400,offset=0): f32[8]
"""
    found = _temporaries(text, live, assigned, 1000)
    assert found == {"decode": 400, "student": 300, "inside loops": 300}
