"""The comparison of a step of the training loop with its update."""

import pytest

from benches import run_bench
from sdft_jax.studies.bench import loop


def test_loop_is_compared_with_its_update(tmp_path):
    report = run_bench("loop", tmp_path, "--models", "0.2M", "--shapes", "8x16x3", "--steps", "2")
    (case,) = report["details"]
    assert {side: len(seconds) for side, seconds in case["seconds"].items()} == {"loop": 2, "update": 2}
    assert min(*case["seconds"]["loop"], *case["seconds"]["update"]) > 0
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_idle_time_is_the_difference_between_loop_and_update():
    row, bars = loop.compare(loop.Case("1M", 8, 64, 64), {"loop": [0.5, 0.1, 0.11], "update": [0.088] * 3})
    assert (row["between steps"], row["idle"]) == ("22.0 ms", "20.0 %")
    assert bars[0].value == pytest.approx(0.8)
