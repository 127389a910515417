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
SHARED = {"two parts": 6, "two parts, the second from within a period": 7}
"""The number of layers with shared keys and values after two periods and the beginning of a third one."""


def architecture_of(types):
    return architecture_from_dict(
        {**CASES["gemma3_linear"], "num_hidden_layers": len(types), "layer_types": types}
    )


def with_shared_layers(shared):
    types = [SLIDING, SLIDING, FULL] * 5
    changes = {"num_hidden_layers": 15, "layer_types": types, "num_kv_shared_layers": shared}
    return architecture_from_dict({**CASES["gemma4_e"], **changes})


ARCHITECTURES = {
    **{name: architecture_of(types) for name, types in PATTERNS.items()},
    **{name: with_shared_layers(shared) for name, shared in SHARED.items()},
}


def test_the_period_is_the_shortest_one():
    periods = {name: [own.period(part) for part in own.parts] for name, own in ARCHITECTURES.items()}
    assert list(periods.values()) == [[1], [3], [3], [3], [3, 3], [3, 3]]


@pytest.mark.parametrize("with_states", [False, True])
@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_a_scan_runs_every_layer_in_order_with_its_parameters_and_kind(config, with_states):
    count = config.num_hidden_layers
    layers = {
        tensor.name: jnp.arange(1, 1 + len(config.layers_with(tensor))) * (i + 1)
        for i, tensor in enumerate(config.layer_tensors)
    }
    if config.layer_embedding:
        layers["embedding"] = jnp.arange(1, 1 + count)
    kind_weights = jnp.array([3, 5, 7, 11])

    def run_layer(carry, own, kind, index, layer):
        total, log, step = carry
        read = sum(own.values())
        total = 31 * total + kind_weights[kind] * read  # wraps around, and depends on the order
        return total, log.at[step].set(jnp.array([read, kind, index, layer])), step + 1

    start = (jnp.int32(1), jnp.zeros((count, 4), jnp.int32), jnp.int32(0))

    def run(layers):
        carry = start
        for part in config.parts:
            carry = run_layers(config, run_layer, carry, layers, part, with_states)
        return carry

    scanned = jax.jit(run)(layers)
    separate = separate_layers(config, layers)
    if config.layer_embedding:
        separate = tuple(own | {"embedding": x} for own, x in zip(separate, layers["embedding"], strict=True))
    looped = run(separate)
    jax.tree.map(np.testing.assert_array_equal, scanned[::2], looped[::2])
    np.testing.assert_array_equal(scanned[1][:, :2], looped[1][:, :2])
    expected = [
        sum(own[tensor.name] for tensor in config.tensors_of(config.kinds[kind])) + own.get("embedding", 0)
        for own, kind in zip(separate, config.kind_of_layer, strict=True)
    ]
    np.testing.assert_array_equal(looped[1][:, 0], expected)
    for log in (scanned[1], looped[1]):
        np.testing.assert_array_equal(log[:, 3], np.arange(count))
    if with_states:
        np.testing.assert_array_equal(scanned[1][:, 2], looped[1][:, 2])
        for kind in range(len(config.kinds)):
            own = looped[1][looped[1][:, 1] == kind, 2]
            np.testing.assert_array_equal(own, np.arange(len(own)))
