"""Rings of slots for sliding windows: their sizes, and decoding compared with the full forward pass."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from make_fixtures import CASES
from sdft_jax.models import Model, architecture_from_dict, grow
from sdft_jax.models.cache import KeysValues, state_shardings, visible_slots
from sdft_jax.sharding import Rules, Sharding, make_mesh
from sdft_jax.types import Sequences
from tiny import VOCABULARY, ragged


def model_with_window(window):
    """Return a model of seven layers: two periods of sliding, sliding, full, and one sliding layer."""
    raw = {**CASES["gemma3"], "sliding_window": window, "num_hidden_layers": 7}
    model = Model(architecture_from_dict(raw))
    params = jax.tree.map(lambda p: 8 * p if np.ptp(p) else p, model.init(jax.random.key(0)))
    return model, params


@pytest.mark.parametrize("window", [3, 8, 10, 100])
def test_decoding_with_a_ring_equals_the_full_forward_pass(window):
    """The prompt has 8 columns, and the cache grows from 11 to 18 tokens on the way."""
    model, params = model_with_window(window)
    rng = np.random.default_rng(window)
    prompt = jax.tree.map(jnp.asarray, ragged(rng, 3, 8, low=1))
    new = jnp.asarray(rng.integers(2, VOCABULARY, (3, 10)), jnp.int32)
    whole = Sequences(
        jnp.concatenate([prompt.tokens, new], axis=1), jnp.concatenate([prompt.mask, new > 0], axis=1)
    )
    expected = jax.jit(model.hidden_states)(params, whole)[:, 8:]
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompt, 11)
    assert [state.slots for state in cache.states] == [11, min(window, 11)]
    decode = jax.jit(model.decode)
    for step in range(10):
        if step == 3:
            cache = grow(cache, 18)
            assert [state.slots for state in cache.states] == [18, min(window, 18)]
        hidden, cache = decode(params, new[:, step], cache)
        np.testing.assert_allclose(hidden, expected[:, step], atol=2e-5)


def with_zeros(cache, positions):
    """Return the cache with zeros in the slots of these positions."""

    def of_kind(state):
        if not isinstance(state, KeysValues):
            return state
        slots = np.array(positions) % state.slots
        keys = jax.tree.map(lambda x: x.at[..., slots].set(0), state.keys)
        return replace(
            state, keys=keys, values=jax.tree.map(lambda x: x.at[..., slots, :].set(0), state.values)
        )

    return replace(cache, states=tuple(map(of_kind, cache.states)))


@pytest.mark.parametrize("separate", [False, True], ids=["scan", "layer by layer"])
@pytest.mark.parametrize("case", ["gemma3", "gemma4_e", "qwen35"])
def test_padding_and_rows_that_have_ended_leave_no_trace(case, separate):
    """Rows have 8, 3, 1 and 0 tokens before they end; layers are full, sliding, shared, and delta nets.

    The slots of padding are zero, also in a ring, in which it takes the place of tokens before the window.
    """
    model = Model(architecture_from_dict(CASES[case]))
    params = jax.tree.map(lambda p: 8 * p if np.ptp(p) else p, model.init(jax.random.key(0)))
    lengths = np.array([8, 3, 1, 0])
    mask = np.arange(8)[None] >= 8 - lengths[:, None]
    prompt = Sequences(jnp.asarray(np.random.default_rng(0).integers(2, VOCABULARY, mask.shape)), mask)
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompt, 12)
    for state in cache.states:
        if isinstance(state, KeysValues):
            written = jnp.any(state.keys != 0, axis=(0, 2, 3)), jnp.any(state.values != 0, axis=(0, 2, 4))
            for slots in written:
                assert jnp.sum(slots, axis=1).tolist() == np.minimum(lengths, state.slots).tolist()
    assert not any(jnp.any(leaf[:, 3]) for leaf in jax.tree.leaves(cache.states))
    if separate:
        params, cache = model.layer_by_layer(params, cache)
    decode = jax.jit(model.decode)
    going_on = np.array([True, False, True, False])
    some, every = cache, cache
    for step in range(4):
        tokens = jnp.array([5, 6, 7, 8]) + step
        hidden, some = decode(params, tokens, some, going_on)
        expected, every = decode(params, tokens, every, np.ones(4, bool))
        np.testing.assert_array_equal(hidden[going_on], expected[going_on])
    assert some.positions.tolist() == [12, 3, 5, 0]
    leaves = (jax.tree.leaves(one.states) for one in (with_zeros(cache, range(8, 12)), some, every))
    for arrays in zip(*leaves, strict=True):
        expected, ended, decoded = (np.moveaxis(x, 0 if separate else 1, 0) for x in arrays)
        np.testing.assert_array_equal(ended[~going_on], expected[~going_on])
        np.testing.assert_array_equal(ended[going_on], decoded[going_on])
        assert np.any(decoded[~going_on] != expected[~going_on])


def test_the_visible_slots_of_the_docstring():
    """With a window of 4, the positions 4 5 2 3 are in the slots, and the next one replaces 2."""
    model, _ = model_with_window(4)
    cache = model.init_cache(2, 16)
    cache = replace(cache, length=jnp.int32(6), positions=jnp.array([6, 1]))
    _, ring = (np.asarray(visible_slots(state, cache))[:, 0] for state in cache.states)
    assert ring[0].tolist() == [True] * 4
    assert ring[1].tolist() == [False, True, True, False]  # the row's only earlier token is at 5
    whole = np.asarray(visible_slots(cache.states[0], cache))[:, 0]
    assert whole[0].tolist() == [True] * 7 + [False] * 9
    assert np.flatnonzero(whole[1]).tolist() == [5, 6]


def test_the_state_of_a_delta_net_does_not_grow():
    model = Model(architecture_from_dict(CASES["qwen35"]))
    cache = model.init_cache(2, 8)
    attention, delta = grow(cache, 20).states
    assert attention.keys.shape == (1, 2, 2, 16, 20)
    assert delta is cache.states[1]
    assert (delta.tail.shape, delta.matrix.shape) == ((5, 2, 3, 128), (5, 2, 4, 16, 16))


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        # keys and values of one full layer, then the rings of three sliding ones
        ("olmo3", [(1, 1, 1, 6, 16), (1, 1, 1, 16, 6), (3, 1, 1, 6, 6), (3, 1, 1, 6, 6)]),
        # keys and values of one full layer, then convolutions and matrices of five delta nets
        ("qwen35", [(1, 1, 1, 16, 16), (1, 1, 1, 16, 16), (5, 1, 3, 64), (5, 1, 2, 16, 16)]),
        # the one key head of three full layers, then rings of two sliding ones
        ("gemma4", [(3, 1, 1, 16, 16), (3, 1, 1, 16, 16), (2, 1, 1, 8, 6), (2, 1, 1, 6, 8)]),
    ],
)
def test_rows_and_heads_of_states_are_split_over_devices(case, shapes):
    """Four rows over fsdp=4, heads over tensor=2, except those of full attention in Gemma 4; no layer and no
    slot is split.
    """
    sharding = Sharding(make_mesh(1, 4, 2), Rules(full_kv_heads=None))
    model = Model(architecture_from_dict(CASES[case]), sharding=sharding)
    states = jax.jit(lambda: model.init_cache(4, 16).states)()
    assert [leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(states)] == shapes
    planned = jax.tree.leaves(state_shardings(model.architecture.kinds, states, sharding))
    leaves = jax.tree.leaves(states)
    assert [own.shard_shape(x.shape) for x, own in zip(leaves, planned, strict=True)] == shapes
