"""Decoding compiled for a TPU, which need not be present."""

import pytest

from benches import run_bench, small_model
from sdft_jax.studies.bench import decode_tpu
from sdft_jax.studies.bench.decode import Case


def test_shares_of_bytes_and_of_seconds():
    case = Case("gpt-oss-20b", 64, 4096, 256)
    measurements = {"moved": 2.0**30, "needed": 0.75 * 2**30, "seconds": 2e-3, "least_seconds": 1e-3}
    row, bars = decode_tpu.compare(case, measurements | {"peak": 2.0**31})
    assert (row["mesh"], row["tokens"]) == ("expert=2, tensor=4", "4,096 + 256")
    assert (row["share"], row["estimated"], row["its share"]) == ("75 %", "2.00 ms", "50 %")
    assert [bar.value for bar in bars] == [0.75, 0.5]


def test_estimates_of_a_small_model(tmp_path_factory, tmp_path, monkeypatch):
    model = str(small_model(tmp_path_factory))
    monkeypatch.setattr(decode_tpu, "PLACEMENTS", {model: ("v5e-4", "fsdp=2,tensor=2")})
    report = run_bench("decode_tpu", tmp_path, "--batch", "4", "--prompts", "32", "--new", "8")
    (case,) = report["details"]
    assert case["seconds"] > case["least_seconds"] == pytest.approx(case["needed"] / 819e9)
    assert case["peak"] > case["needed"]
