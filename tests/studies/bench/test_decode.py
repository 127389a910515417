"""The comparison of greedy decoding with transformers and with the memory bandwidth."""

import jax
import pytest

from sdft_jax import cli
from sdft_jax.models import Model
from sdft_jax.studies.bench import decode
from sdft_jax.studies.bench.models import architecture


def test_decoding_is_compared_with_the_bandwidth(capsys):
    options = ["--models", "0.2M", "--batches", "2", "--prompt", "4", "--new", "3"]
    assert cli.main(["bench", "decode", *options, "--rounds", "1", "--peer", "none"]) == 0
    assert "of the bandwidth limit" in capsys.readouterr().out.replace("\n", " ")


def test_a_token_reads_the_weights_and_the_filled_cache():
    model = Model(architecture("0.2M"))
    params = model.abstract_params()
    case = decode.Case("0.2M", 3, 10, 4)
    cache = 2 * 2 * 2 * 32 * 3 * 12  # keys and values, layers, heads, width, rows, slots
    weights = sum(w.size for w in jax.tree.leaves(params))
    assert decode.bytes_per_token(model, params, case) == 4 * (weights + cache)


def test_row_compares_with_the_faster_cache_and_excludes_the_prefill():
    seconds = {"ours": [1.1] * 3, "ours, one token": [0.1] * 3, "static": [2.2] * 3, "dynamic": [3.3] * 3}
    row, bars = decode.compare(decode.Case("1M", 2, 8, 11), seconds, 1.0, limit=0.05)
    assert row["transformers, tokens/s"] == "10 (static cache)"
    assert row["times faster"] == "2.00 (2.00-2.00)"
    assert row["a token"] == "100,000 us"
    assert [bar.value for bar in bars] == [pytest.approx(2.0), pytest.approx(0.5)]
