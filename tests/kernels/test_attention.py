"""Attention against a loop over heads and positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.kernels.attention import attention, token_positions


def slow_attention(q, k, v, visible, scale):
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = np.flatnonzero(visible[b, t])
        logits = k[b, seen, n // group] @ q[b, t, n] * scale
        weights = np.exp(logits - logits.max())
        out[b, t, n] = weights @ v[b, seen, n // group] / weights.sum()
    return out


def random_qkv(batch=2, length=9):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, 4, 8), (batch, length, 2, 8), (batch, length, 2, 8)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_equals_the_loop(window):
    q, k, v = random_qkv()
    mask = np.ones((2, 9), bool)
    mask[0, :4] = False
    mask[1, 7:] = False
    limit = None if window is None else jnp.int32(window)
    out = attention(*map(jnp.asarray, (q, k, v)), jnp.asarray(mask), limit, 0.3, 9)
    t, s = np.indices((9, 9))
    near = t - s < (window or 100)
    visible = (s <= t) & near & mask[:, None, :]
    np.testing.assert_allclose(
        np.asarray(out)[mask], slow_attention(q, k, v, visible | (~mask[:, :, None]), 0.3)[mask], atol=1e-5
    )


def test_positions_count_real_tokens():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(token_positions(mask), [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]])


def test_a_row_of_padding_is_finite_and_so_are_its_gradients():
    qkv = [jnp.asarray(x) for x in random_qkv()]
    mask = jnp.zeros((2, 9), bool).at[1].set(True)

    def total(qkv):
        return jnp.sum(attention(*qkv, jnp.asarray(mask), None, 0.3, 4) ** 2)

    value, gradients = jax.value_and_grad(total)(qkv)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_softmax_is_float32_under_bfloat16():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_qkv())
    mask = jnp.ones((2, 9), bool)
    out = attention(q, k, v, mask, None, 0.3, 4)
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), mask, None, 0.3, 4)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), exact, atol=0.03)


@pytest.mark.parametrize("window", [None, 3])
def test_a_block_of_queries_at_a_time_is_the_same_in_values_and_gradients(window):
    qkv = [jnp.asarray(x) for x in random_qkv()]
    mask = np.ones((2, 9), bool)
    mask[0, :5] = False
    limit = None if window is None else jnp.int32(window)

    def of(block):
        def total(qkv):
            out = attention(*qkv, jnp.asarray(mask), limit, 0.3, block)
            return jnp.sum(jnp.sin(out) * mask[:, :, None, None]), out

        (_, out), gradients = jax.value_and_grad(total, has_aux=True)(qkv)
        return [np.asarray(out)[mask], *map(np.asarray, gradients)]

    for block in (1, 2, 4):  # 9 is no multiple of 4; of 1 there are more blocks than segments
        for whole, cut in zip(of(9), of(block), strict=True):
            np.testing.assert_allclose(cut, whole, atol=1e-6)


def test_scores_of_a_long_prompt_never_exist_at_once():
    """In neither pass: the whole [1, 4, T, T] in float32 is 16 MiB here."""
    length = 1024
    shapes = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (4, 2, 2)]
    mask = jnp.ones((1, length), bool)

    def memory(block):
        def total(*qkv):
            return jnp.sum(attention(*qkv, jnp.asarray(mask), None, 0.3, block) ** 2)

        compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scores = 4 * length * length * 4
    assert memory(length) > scores
    assert memory(64) < 0.5 * scores
