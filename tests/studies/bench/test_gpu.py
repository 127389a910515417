"""Decoding compiled for a GPU; the compiler is needed, but no GPU."""

import importlib.util
import re

import pytest

from benches import run_bench
from sdft_jax import cli
from sdft_jax.studies.bench import gpu
from sdft_jax.studies.bench.decode import Case

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
INSTALLED = any(importlib.util.find_spec(name) for name in PLUGINS if importlib.util.find_spec("jax_plugins"))


def test_share_is_bytes_needed_over_bytes_moved():
    measurements = {
        "moved": 4.8e9,
        "beyond_cache": 4.0e9,
        "needed": 3.6e9,
        "peak": 2.0**30,
        "compile_seconds": 9.0,
    }
    row, bars = gpu.compare(Case("1.5B", 64, 512, 256), measurements)
    assert (row["share"], row["least, a token"], row["peak"]) == ("75 %", "1,000 us", "1.0 GiB")
    assert [bar.value for bar in bars] == [0.75, 0.9]
    assert (row["beyond the cache"], row["its share"]) == ("3.73 GiB", "90 %")


@pytest.mark.skipif(INSTALLED, reason="the GPU compiler is installed")
def test_missing_compiler_is_an_error_that_names_the_extra_to_install(capsys):
    assert cli.main(["bench", "gpu", "--models", "gemma-9-4b"]) == 2
    assert "model.path=gemma-9-4b" in capsys.readouterr().err
    assert cli.main(["bench", "gpu", "--models", "0.2M"]) == 2
    assert re.search(r"the GPU compiler is not available .*-e '\.\[cuda\]'", capsys.readouterr().err)


@pytest.mark.skipif(not INSTALLED, reason="the GPU compiler is not installed")
def test_a_token_moves_less_than_twice_the_weights_and_the_cache(tmp_path):
    """With a scan over layers, which copies both, a token would move more than three times their size."""
    report = run_bench("gpu", tmp_path, "--models", "0.5B", "--prompt", "64", "--new", "16")
    (case,) = report["details"]
    assert case["needed"] < case["moved"] < 2 * case["needed"]
    assert case["needed"] < case["peak"]
