"""The chunked divergence and its baselines."""

import jax
import numpy as np

from benches import run_bench
from sdft_jax.plan.hlo import matmul_flops
from sdft_jax.sharding import single_device
from sdft_jax.studies.bench import divergence


def test_divergence_is_compared_with_its_products_and_full_logits(capsys, tmp_path):
    options = ["--tokens", "8", "16", "--width", "8", "--vocabulary", "32", "--chunk", "4"]
    report = run_bench("divergence", tmp_path, *options, "--whole-up-to", "8", "--rounds", "1")
    assert "products" in capsys.readouterr().out
    assert [sorted(case["seconds"]) for case in report["details"]] == [
        ["chunked", "products", "whole"],
        ["chunked", "products"],
    ]


def test_chunked_and_whole_have_the_same_value_and_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(12, 8), (32, 8)] * 2
    arrays = tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    (value, _), gradients = divergence.chunked(arrays, 4, single_device())
    expected, expected_gradients = divergence.whole(arrays, 4, single_device())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for actual, gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(actual, gradient, rtol=1e-4, atol=1e-5)


def test_program_of_the_products_contains_all_four():
    shapes = [(16, 8), (32, 8)] * 2
    program = divergence._compile(divergence.products, shapes, "float32", 4, single_device())
    assert matmul_flops(program.as_text()) == 4 * 2 * 16 * 8 * 32


def test_row_contains_ratios():
    seconds = {"chunked": [2.0, 2.0, 4.0], "products": [1.0, 1.0, 4.0], "whole": [3.0, 3.0, 3.0]}
    memory = {"chunked": 2**20, "products": 0, "whole": 2**22}
    row, bars = divergence.compare(8, seconds, memory)
    assert row["times its products"] == "2.00 (1.00-2.00)"
    assert row["times less memory"] == "4.0"
    assert [bar.value for bar in bars] == [0.5, 1.5, 4.0]
