"""`model.remat=auto` keeps matrix products where a device's memory has room for them."""

import json

import pytest
from test_memory import SIZES, setting

from sdft_jax.memory import Widths, fullest, update_arrays
from sdft_jax.plan.program import model_shape
from sdft_jax.remat import KEPT, MARGIN, choose_remat, device_memory
from sdft_jax.sharding import Sharding, make_mesh
from sdft_jax.state import make_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(SIZES))
    return path


def chosen(directory, limit, *overrides, widths=None):
    config, _ = setting(directory, *overrides)
    return choose_remat(config, model_shape(config), Sharding(make_mesh(2, 2, 2)), limit, widths).model.remat


def test_products_are_kept_as_soon_as_they_have_room(directory):
    _, needed = fullest(update_arrays(*setting(directory, f"model.remat={KEPT}")))
    _, least = fullest(update_arrays(*setting(directory, "model.remat=full")))
    assert least < needed
    assert chosen(directory, MARGIN * needed) == KEPT
    assert chosen(directory, MARGIN * needed - 1) == "full"
    # shorter rows than the limits allow need less
    assert chosen(directory, MARGIN * needed - 1, widths=Widths(8, 16)) == KEPT


def test_a_device_that_does_not_tell_its_memory_recomputes_each_layer(directory):
    assert device_memory() is None  # a CPU
    assert chosen(directory, None) == "full"


@pytest.mark.parametrize("remat", ["none", "full", "hidden"])
def test_what_is_asked_for_stays(directory, remat):
    assert chosen(directory, 1e15, f"model.remat={remat}") == remat


def test_undecided_it_is_the_least_memory(directory):
    config, model = setting(directory)
    assert config.model.remat == "auto"
    assert model.remat == make_model(config, model_shape(config), model.sharding).remat == "full"
