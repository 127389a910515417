"""The order of estimates, the candidates that are left out, and the largest batch from two peaks."""

import pytest

from plans import describe_model, made_estimate
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.plan import candidates, planner
from sdft_jax.plan.candidates import make_candidates
from sdft_jax.plan.planner import largest_batch, plan, plan_update

SECONDS = {(1, 4, 1): 3.0, (1, 2, 2): 2.0, (2, 1, 2): 4.0}
"""Mesh -> seconds per step; other meshes do not divide the model."""


@pytest.fixture
def config(tmp_path_factory, monkeypatch):
    """A configuration whose estimates are not compiled."""

    def estimate(config, architecture, candidate):
        sizes = tuple(candidate.mesh.values())
        if sizes not in SECONDS:
            raise SdftError(f"{sizes} does not divide it")
        peak = 20 if sizes[0] > 1 else 10
        return made_estimate(
            peak,
            config.train.batch_size,
            SECONDS[sizes],
            topology=candidate.topology.name,
            mesh=candidate.mesh,
        )

    monkeypatch.setattr(candidates, "topology_devices", lambda topology: list(range(topology.size)))
    monkeypatch.setattr(planner, "estimate", estimate)
    monkeypatch.setattr(planner, "advise", lambda *_, **__: ("use more chips",))
    return load_config(None, [f"model.path={describe_model(tmp_path_factory)}"])


def test_fastest_that_fits_is_first_and_meshes_that_do_not_divide_are_left_out(config):
    shown = []
    estimates, left_out = plan(
        config,
        make_candidates(config, ["v5e-4"], "all", []),
        largest=False,
        show=lambda done, name: shown.append((done, name)),
    )
    assert [tuple(x.mesh.values()) for x in estimates] == [(1, 2, 2), (1, 4, 1), (2, 1, 2)]
    assert [x.advice for x in estimates] == [("use more chips",), (), ()]
    assert left_out == [
        "v5e:2x2 tensor=4: (1, 1, 4) does not divide it",
        "v5e:2x2 data=2,fsdp=2: (2, 2, 1) does not divide it",
        "v5e:2x2 data=4: (4, 1, 1) does not divide it",
    ]
    assert shown[0] == (0, "v5e:2x2 tensor=4")
    assert shown[-2:] == [(6, "v5e:2x2: advice"), (6, "")]


def test_each_topology_has_its_own_best_estimate(config):
    several = make_candidates(config, ["v6e-4", "v5e-4"], "all", [])
    estimates, _ = plan(config, several, largest=False, show=lambda *_: None)
    assert [x.topology for x in estimates] == ["v5e:2x2"] * 3 + ["v6e:2x2"] * 3
    assert [bool(x.advice) for x in estimates] == [True, False, False] * 2


def test_single_mesh_that_does_not_divide_is_an_error(config):
    with pytest.raises(SdftError, match="does not divide it"):
        plan(config, make_candidates(config, ["v5e-4"], "data=4", []), largest=False, show=lambda *_: None)


def test_plan_update_returns_the_best_mesh(config):
    assert plan_update(config, "v5e-4", "all").mesh == {"data": 1, "fsdp": 2, "tensor": 2}
    assert plan_update(config, "v5e-4", "fsdp=4").mesh == {"data": 1, "fsdp": 4, "tensor": 1}
    with pytest.raises(SdftError, match="no mesh of v5e-8 is possible: v5e:2x4 tensor=8: "):
        plan_update(config, "v5e-8", "all")


def test_estimates_that_fit_precede_those_that_do_not():
    slow, fast = made_estimate(12, seconds=3), made_estimate(14, seconds=2)
    over, refused = made_estimate(20, seconds=1), made_estimate(30, refusal="needs 30 GiB")
    assert sorted([refused, over, slow, fast], key=planner._rank) == [fast, slow, over, refused]
    assert [x.fits for x in (fast, over, refused)] == [True, False, False]


def test_largest_batch_is_where_the_line_through_two_peaks_meets_the_limit():
    # 10 GiB at 32 rows, 12 at 64: 1/16 GiB per row, so 6 GiB more are 96 rows more.
    assert largest_batch(made_estimate(10, 32), made_estimate(12, 64)) == 128
    # 20 GiB at 32 rows, 14 at 16: 3/8 GiB per row, 10.67 rows too many; the mesh divides multiples of 4.
    assert largest_batch(made_estimate(20, 32), made_estimate(14, 16)) == 20
    assert largest_batch(made_estimate(18, 4), made_estimate(17.9, 2)) == 0
