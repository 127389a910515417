"""Estimates as table rows, sentences and files."""

import json

import pytest

from plans import made_estimate
from sdft_jax.config import load_config
from sdft_jax.plan import show
from sdft_jax.plan.footprint import GIB
from sdft_jax.plan.hlo import Collective
from sdft_jax.plan.prices import Cost
from sdft_jax.plan.show import details, row, write

FITS = made_estimate(
    12,
    rules="plain",
    flops=2e12,
    exchanges=[
        Collective("all-reduce", "a", 2, 1e9),
        Collective("all-gather", "a", 3, 4e9),
        Collective("all-reduce", "b", 5, 2e9),
    ],
    roofline={"rollout": 0.25, "learn": 0.5},
    compile_seconds=61.0,
    largest_batch=64,
    advice=["model.remat=full (slower): needs about 9.00 GiB", "use more chips"],
)
REFUSED = made_estimate(20, refusal="needs 20.0 GiB per device, 4.0 GiB too much", seconds=0.0)


def test_row():
    assert row(FITS) == {
        "data x fsdp x tensor": "1x4x4 plain",
        "state": "8.00",
        "peak": "12.00",
        "fits": "yes",
        "free": "4.00",
        "largest batch": 64,
        "GB received": "7.0",
        "est. s": "1.00",
        "limit s": "0.75",
    }
    assert row(REFUSED) == {
        "data x fsdp x tensor": "1x4x4",
        "state": "8.00",
        "peak": "20.00",
        "fits": "no",
        "free": "-4.00",
    }


def test_details():
    assert details(FITS) == [
        "fsdp=4,tensor=4: arrays of known shape, in GiB per device: parameters 2.00, optimizer 4.00, teacher "
        "2.00, KV cache 1.00, decoding weights 3.00.",
        "Peak memory: 12.00 GiB per device, of which the state is 8.00; the rest, by the phase that "
        "allocated it: student 3.00, decode 1.00. Largest part: optimizer 4.0 GiB.",
        "Received per device and step: all-gather 4.00 GB in 3 operations, all-reduce 3.00 GB in 7 "
        "operations.",
        "2.00 TFLOP per device and step. Estimated seconds: decode 1.00; at peak rates: rollout 0.25, learn "
        "0.50. Compiled in 61 s.",
        "To reduce memory: model.remat=full (slower): needs about 9.00 GiB; use more chips.",
    ]
    cost = Cost(19.2, 0.5, "a run of 900 updates", "$1.20 per chip")
    assert details(FITS, cost)[4] == f"Cost: {cost}"
    assert details(REFUSED, cost)[1:] == ["It does not fit: needs 20.0 GiB per device, 4.0 GiB too much."]


def test_files(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "compiler", lambda: "jax 0")  # does not require libtpu
    config = load_config(None, ["model.path=Qwen2.5-7B"])
    report_path, figure = write(config, [FITS, REFUSED], ["v5e:4x4 data=16: no"], tmp_path / "out")
    report = json.loads(report_path.read_text())
    assert report["left out"] == ["v5e:4x4 data=16: no"]
    assert "not measured on a TPU" in report["caveat"]
    first, second = report["estimates"]
    assert (first["peak"], first["state"], first["total_seconds"]) == (12 * GIB, 8 * GIB, 1.0)
    assert (first["fits"], second["fits"]) == (True, False)
    assert first["cost"]["per_hour"] == pytest.approx(16 * 1.2)
    assert first["exchanges"][0] == pytest.approx(
        {"kind": "all-reduce", "scope": "a", "times": 2, "bytes": 1e9}
    )
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
