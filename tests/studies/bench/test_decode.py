"""The comparison of greedy decoding with transformers and with the memory bandwidth."""

import jax
import pytest

from make_fixtures import CASES
from sdft_jax import cli
from sdft_jax.models import Model, architecture_from_dict
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


def test_windows_states_and_experts_move_what_a_token_needs():
    """Three rows; a window of 6 is always full, and a mean of 3 of 8 experts a row leaves (5/8) ** 3 out."""
    case = decode.Case("", 3, 10, 4)

    def states(name):
        model = Model(architecture_from_dict(CASES[name]))
        params = model.abstract_params()
        weights = sum(w.size for w in jax.tree.leaves(params)) - params["embed"].size
        return params["layers"], decode.bytes_per_token(model, params, case) / 4 - weights

    _, moved = states("mistral")  # 4 layers, 2 heads of 6
    assert moved == 2 * 4 * 2 * 6 * 3 * 6
    _, moved = states("qwen35")
    # one layer with 2 heads of 16, five with 3 inputs of 128 channels and 4 matrices of 16 x 16
    assert moved == 2 * 2 * 16 * 3 * 12 + 2 * 5 * 3 * (3 * 128 + 4 * 16 * 16)
    layers, moved = states("qwen3_moe")
    of_experts = sum(layers[f"experts_{name}"].size for name in ("gate", "up", "down"))
    expected = 2 * 4 * 2 * 16 * 3 * 12 - of_experts * (5 / 8) ** 3
    assert moved == pytest.approx(expected, abs=1)


def test_row_compares_with_the_faster_cache_and_excludes_the_prefill():
    seconds = {"ours": [1.1] * 3, "ours, one token": [0.1] * 3, "static": [2.2] * 3, "dynamic": [3.3] * 3}
    row, bars = decode.compare(decode.Case("1M", 2, 8, 11), seconds, 1.0, limit=0.05)
    assert row["transformers, tokens/s"] == "10 (static cache)"
    assert row["times faster"] == "2.00 (2.00-2.00)"
    assert row["a token"] == "100,000 us"
    assert [bar.value for bar in bars] == [pytest.approx(2.0), pytest.approx(0.5)]
