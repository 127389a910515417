"""The order of layers, and the parameters that each reads, compared with a loop over layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from make_fixtures import CASES
from sdft_jax.models import architecture_from_dict
from sdft_jax.models.layers import run_layers, separate_layers

SLIDING, FULL = "sliding_attention", "full_attention"
PATTERNS = {
    "one kind": [FULL] * 3,
    "whole periods": [SLIDING, SLIDING, FULL] * 2,
    "remaining layers": [SLIDING, SLIDING, FULL] * 2 + [SLIDING],
    "no period": [FULL, SLIDING, SLIDING],
}


def architecture_of(types):
    return architecture_from_dict(
        {**CASES["gemma3_linear"], "num_hidden_layers": len(types), "layer_types": types}
    )


def test_the_period_is_the_shortest_one():
    periods = {name: architecture_of(types).period for name, types in PATTERNS.items()}
    assert periods == {"one kind": 1, "whole periods": 3, "remaining layers": 3, "no period": 3}


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("types", PATTERNS.values(), ids=PATTERNS)
def test_a_scan_runs_every_layer_in_order_with_its_parameters_and_kind(types, with_states):
    config = architecture_of(types)
    layers = {
        tensor.name: jnp.arange(1.0, 1.0 + len(types)) * (i + 1)
        for i, tensor in enumerate(config.layer_tensors)
    }
    kind_weights = jnp.array([3.0, 5.0])

    def run_layer(carry, own, kind, index, layer):
        total, log, step = carry
        total = 0.7 * total + kind_weights[kind] * own["q"] + own["down"]
        return total, log.at[step].set(jnp.array([own["q"], kind, index, layer])), step + 1

    start = (jnp.float32(1), jnp.zeros((len(types), 4)), jnp.int32(0))
    scanned = jax.jit(lambda layers: run_layers(config, run_layer, start, layers, with_states))(layers)
    looped = run_layers(config, run_layer, start, separate_layers(config, layers), with_states)
    jax.tree.map(np.testing.assert_allclose, scanned[::2], looped[::2])
    np.testing.assert_array_equal(scanned[1][:, :2], looped[1][:, :2])
    np.testing.assert_array_equal(looped[1][:, 0], layers["q"])
    for log in (scanned[1], looped[1]):
        np.testing.assert_array_equal(log[:, 3], np.arange(len(types)))
    if with_states:
        np.testing.assert_array_equal(scanned[1][:, 2], looped[1][:, 2])
        for kind in range(len(config.kinds)):
            own = looped[1][looped[1][:, 1] == kind, 2]
            np.testing.assert_array_equal(own, np.arange(len(own)))
