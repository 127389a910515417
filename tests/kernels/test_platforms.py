"""Choices that depend on the platform."""

import pytest

from sdft_jax.kernels.platforms import UNROLLED, unrolls_layers


@pytest.mark.parametrize(
    ("platform", "layers", "expected"),
    [("gpu", 80, True), ("tpu", 2, False), ("cpu", UNROLLED, True), ("cpu", UNROLLED + 1, False)],
)
def test_decoding_unrolls_the_layers_on_a_gpu_and_those_of_shallow_models_on_a_cpu(
    platform, layers, expected
):
    assert unrolls_layers(platform, layers) == expected
