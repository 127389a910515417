"""Attention compared with a loop over heads and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.attention import AttentionCall, attention, softmax, token_positions

SCALE = 0.3


def slow_attention(q, k, v, visible, scale):
    """Return attention computed one head and one position at a time."""
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = np.flatnonzero(visible[b, t])
        logits = k[b, keys, n // group] @ q[b, t, n] * scale
        weights = np.exp(logits - logits.max())
        out[b, t, n] = weights @ v[b, keys, n // group] / weights.sum()
    return out


def attend(qkv, mask, window, block):
    """Return attention with a window that is an array, as in a scan over layers, or None."""
    window = None if window is None else jnp.int32(window)
    return attention(AttentionCall(*qkv, jnp.asarray(mask), window, SCALE), block)


def random_qkv(batch=2, length=9):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, 4, 8), (batch, length, 2, 8), (batch, length, 2, 8)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_equals_the_loop(window):
    qkv = random_qkv()
    mask = np.ones((2, 9), bool)
    mask[0, :4] = False
    mask[1, 7:] = False
    out = attend(map(jnp.asarray, qkv), mask, window, 9)
    t, s = np.indices((9, 9))
    near = t - s < (window or 100)
    visible = (s <= t) & near & mask[:, None, :]
    expected = slow_attention(*qkv, visible | (~mask[:, :, None]), SCALE)
    np.testing.assert_allclose(np.asarray(out)[mask], expected[mask], atol=1e-5)


def test_positions_count_real_tokens():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(token_positions(mask), [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]])


def test_a_row_of_padding_has_finite_values_and_gradients():
    qkv = [jnp.asarray(x) for x in random_qkv()]
    mask = jnp.zeros((2, 9), bool).at[1].set(True)

    def total(qkv):
        return jnp.sum(attend(qkv, mask, None, 4) ** 2)

    value, gradients = jax.value_and_grad(total)(qkv)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_softmax_is_computed_in_float32_for_bfloat16_inputs():
    qkv = [jnp.asarray(x, jnp.bfloat16) for x in random_qkv()]
    mask = jnp.ones((2, 9), bool)
    out = attend(qkv, mask, None, 4)
    exact = attend([x.astype(jnp.float32) for x in qkv], mask, None, 4)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.03)


def test_sinks_take_a_part_of_the_softmax():
    """The weights are those of a softmax with one more key, whose value is 0; so are their gradients."""
    rng = np.random.default_rng(0)
    scores, sinks = rng.normal(size=(3, 2, 5)), rng.normal(size=(1, 2, 1)) + 2

    def expected(scores, sinks):
        both = jnp.concatenate([scores, jnp.broadcast_to(sinks, (3, 2, 1))], axis=-1)
        return jax.nn.softmax(both, axis=-1)[..., :-1]

    def results(function):
        loss = jax.grad(lambda *x: jnp.sum(jnp.tanh(3 * function(*x))), (0, 1))
        arrays = [jnp.asarray(x, jnp.float32) for x in (scores, sinks)]
        return function(*arrays), loss(*arrays)

    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
        results(softmax),
        results(expected),
    )
    largest = jnp.full((1, 1, 1), 1e4, jnp.float32)
    assert softmax(jnp.zeros((1, 1, 4)), largest).tolist() == [[[0.0] * 4]]


@pytest.mark.parametrize("window", [None, 3])
def test_the_block_size_does_not_change_values_or_gradients(window):
    qkv = [jnp.asarray(x) for x in random_qkv()]
    mask = np.ones((2, 9), bool)
    mask[0, :5] = False

    def values_and_gradients(block):
        def total(qkv):
            out = attend(qkv, mask, window, block)
            return jnp.sum(jnp.sin(out) * mask[:, :, None, None]), out

        (_, out), gradients = jax.value_and_grad(total, has_aux=True)(qkv)
        return [np.asarray(out)[mask], *map(np.asarray, gradients)]

    for block in (1, 2, 4):  # 9 is not a multiple of 4; with 1 there are more blocks than segments
        for whole, blocked in zip(values_and_gradients(9), values_and_gradients(block), strict=True):
            np.testing.assert_allclose(blocked, whole, atol=1e-6)


def test_the_scores_of_a_long_prompt_are_never_stored_at_once():
    """Neither the forward nor the backward pass stores all scores: [1, 4, T, T] in float32 is 16 MiB."""
    length = 1024
    shapes = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (4, 2, 2)]
    mask = jnp.ones((1, length), bool)

    def memory(block):
        def total(*qkv):
            return jnp.sum(attend(qkv, mask, None, block) ** 2)

        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * length * length * 4
    assert memory(length) > scores
    assert memory(64) < 0.5 * scores
