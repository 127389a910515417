"""Devices that should hold a run, compared with the arrays that are counted on real meshes of that size."""

import pytest

from plans import describe_model, setting
from sdft_jax.algorithm.learner import make_model
from sdft_jax.config import load_config
from sdft_jax.plan.footprint import GIB, peak_phase, state_arrays, update_arrays
from sdft_jax.plan.program import model_shape
from sdft_jax.plan.slices import SHARE, larger_devices, smallest_slices
from sdft_jax.sharding import single_device


def on_one_device(*settings):
    config = load_config(None, settings)
    return config, make_model(config, model_shape(config), single_device())


def test_number_of_devices_is_the_smallest_whose_counted_peak_fits(tmp_path_factory):
    directory = describe_model(tmp_path_factory)
    peaks = [peak_phase(update_arrays(*setting(directory, mesh=(1, size, 1))))[1] for size in (2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)
    config, model = setting(directory, mesh=(1, 1, 1))
    for peak, number in zip(peaks, (2, 4, 8), strict=True):
        assert larger_devices(config, model, update_arrays, peak / SHARE + 1) == f"{number} such devices"
    # 16 rows are not divisible by 32 devices
    assert larger_devices(config, model, update_arrays, peaks[-1] / 100) == ""


def test_slices_of_known_models():
    """Qwen2.5-7B has 7.6e9 parameters of 16 bytes in the state: 113 GiB, 14.2 on 8 chips and 7.1 on 16."""
    config, model = on_one_device("model.path=Qwen2.5-7B", "sampling.max_new_tokens=512")
    state = sum(array.bytes for array in state_arrays(config, model))
    assert state == pytest.approx(7_615_616_512 * 16, rel=1e-4)
    assert smallest_slices(config, model, update_arrays) == ["v5e-16", "v6e-8", "v5p-8"]
    # adapters: 14.2 GiB of bfloat16 weights and little else
    adapters = on_one_device("model.path=Qwen2.5-7B", "sampling.max_new_tokens=512", "lora.rank=32")
    assert smallest_slices(*adapters, update_arrays)[0] == "v5e-4"


def test_generation_without_a_slice_that_holds_it_is_not_named():
    """Four rows allow at most four chips: 153 GiB of arrays need those of v5p."""
    config, model = on_one_device("model.path=Qwen2.5-7B", "train.batch_size=4")
    assert smallest_slices(config, model, update_arrays) == ["v5p-8"]


def test_a_slice_is_a_product_and_not_a_single_chip_of_three_dimensions():
    config, model = on_one_device("model.path=Qwen2.5-0.5B", "train.batch_size=8")
    assert smallest_slices(config, model, update_arrays) == ["v5e-1", "v6e-1", "v5p-8"]


def test_devices_that_were_too_small_are_not_offered(tmp_path_factory):
    """The compiler needs more than the counted arrays, which fit on one chip of v5e."""
    config, model = on_one_device("model.path=Qwen2.5-0.5B", "train.batch_size=8")
    slices = smallest_slices(config, model, update_arrays, (1, 15.7 * GIB))
    assert slices == ["v5e-4", "v6e-1", "v5p-8"]
    on_four = setting(describe_model(tmp_path_factory), mesh=(4, 1, 1))
    assert larger_devices(*on_four, update_arrays, 1e15) == "8 such devices"
