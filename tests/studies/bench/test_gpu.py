"""Decoding compiled for a GPU that is not there, where its compiler is installed."""

import importlib.util
import json
import re

import pytest

from sdft_jax import cli
from sdft_jax.studies.bench import gpu
from sdft_jax.studies.bench.decode import Case

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
INSTALLED = any(importlib.util.find_spec(name) for name in PLUGINS if importlib.util.find_spec("jax_plugins"))


def test_the_share_is_of_what_a_token_moves():
    found = {"moved": 4.8e9, "needed": 3.6e9, "peak": 2.0**30, "compile_seconds": 9.0}
    row, bars = gpu.compare(Case("1.5B", 64, 512, 256), found)
    assert (row["share"], row["least, a token"], row["peak"]) == ("75 %", "1,000 us", "1.0 GiB")
    assert bars[0].value == 0.75


@pytest.mark.skipif(INSTALLED, reason="the GPU compiler is there")
def test_without_the_compiler_a_sentence_says_what_to_install(capsys):
    assert cli.main(["bench", "gpu", "--models", "0.2M"]) == 2
    assert re.search(r"the GPU compiler cannot be had .*sdft_jax\[cuda\]", capsys.readouterr().err)


@pytest.mark.skipif(not INSTALLED, reason="the GPU compiler is not there")
def test_a_token_moves_little_more_than_weights_and_cache(tmp_path):
    """A scan over layers would copy both: a token would move more than three times as much."""
    words = ["--models", "0.5B", "--prompt", "64", "--new", "16", "--output", str(tmp_path)]
    assert cli.main(["bench", "gpu", *words]) == 0
    (case,) = json.loads((tmp_path / "gpu.json").read_text())["details"]
    assert case["needed"] < case["moved"] < 2 * case["needed"]
    assert case["needed"] < case["peak"]
