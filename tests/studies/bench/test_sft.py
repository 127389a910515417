"""The comparison of an SDFT step with an SFT step."""

import pytest

from benches import run_bench
from sdft_jax.studies.bench import sft


def test_sdft_is_compared_with_sft(tmp_path):
    report = run_bench("sft", tmp_path, "--models", "0.2M", "--shapes", "8x4x6x3", "--rounds", "1")
    (case,) = report["details"]
    assert case["flops"]["sdft"] > case["flops"]["sft"] > 0


def test_row_contains_the_ratio_that_flops_do_not_explain():
    flops, seconds = {"sft": 1.0, "sdft": 2.0}, {"sft": [1.0] * 3, "sdft": [3.0] * 3}
    row, bars = sft.compare(sft.Case("1M", 2, 4, 6, 3), flops, seconds)
    assert (row["times the seconds"], row["seconds over FLOPs"]) == ("3.00 (3.00-3.00)", "1.50")
    assert bars[0].value == pytest.approx(2 / 3)
