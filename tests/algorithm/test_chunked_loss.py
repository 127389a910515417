"""Chunk sizes and dtypes of the chunked loss, with a plain cross-entropy as the token loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.chunked_loss import FactoredLogits, chunked_loss, is_token, logsumexp, vocab_sum
from sdft_jax.models.head import AdaptedHead, CappedHead
from sdft_jax.sharding import Sharding, make_mesh, single_device

B, T, D, V = 2, 5, 8, 12
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(V, D)), jnp.float32)
TARGETS = jnp.asarray(RNG.integers(0, V, size=(B, T)), jnp.int32)
WEIGHTS = jnp.asarray(RNG.uniform(size=(B, T)), jnp.float32)


def cross_entropy(logits, target, axes):
    log_probs = logits - logsumexp(logits, axes)
    is_target = is_token(logits, target, axes)
    value = -vocab_sum(jnp.where(is_target, log_probs, 0.0), axes)
    return value, value, jnp.exp(log_probs) - is_target


def loss_of(hidden, head, chunk, sharding=None):
    roles = (FactoredLogits(hidden, head),)
    return chunked_loss(cross_entropy, roles, TARGETS, WEIGHTS, chunk, sharding or single_device())


def run(hidden, head, chunk):
    def loss(hidden, head):
        return loss_of(hidden, head, chunk)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)


def plain_loss(hidden, head, softcap=None):
    logits = hidden @ head.T
    log_probs = jax.nn.log_softmax(softcap * jnp.tanh(logits / softcap) if softcap else logits)
    values = -jnp.take_along_axis(log_probs, TARGETS[..., None], axis=2)[..., 0]
    return jnp.sum(WEIGHTS * values), values


@pytest.fixture(scope="module")
def expected():
    return jax.value_and_grad(plain_loss, argnums=(0, 1), has_aux=True)(HIDDEN, HEAD)


@pytest.mark.parametrize("chunk", [1, 3, 10, 1000])
def test_every_chunk_size_equals_whole_logits(expected, chunk):
    result = run(HIDDEN, HEAD, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), result, expected)


def test_bfloat16_hidden_states_and_float32_head(expected):
    """Gradients have the dtypes of their arrays; sums are float32, so that two digits remain."""
    (value, stats), (d_hidden, d_head) = run(HIDDEN.astype(jnp.bfloat16), HEAD, 3)
    assert (value.dtype, stats.dtype, d_hidden.dtype, d_head.dtype) == (
        "float32",
        "float32",
        "bfloat16",
        "float32",
    )
    assert value == pytest.approx(float(expected[0][0]), rel=1e-2)
    np.testing.assert_allclose(d_head, expected[1][1], atol=0.05)
    np.testing.assert_allclose(np.float32(d_hidden), expected[1][0], atol=0.05)


def test_an_outer_factor_scales_the_gradient(expected):
    def loss(hidden):
        return -2.0 * loss_of(hidden, HEAD, 3)[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(HIDDEN), -2 * expected[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mesh", "softcap"), [((1, 1, 1), None), ((1, 2, 2), None), ((1, 2, 2), 2.0)])
def test_an_adapted_head_equals_the_merged_one(mesh, softcap):
    """Values, and the gradients of hidden states, matrix and both factors; also of bounded logits."""
    rng, sharding = np.random.default_rng(1), Sharding(make_mesh(*mesh))
    head = AdaptedHead(HEAD, *(jnp.asarray(rng.normal(size=(n, 3)), jnp.float32) for n in (D, V)))

    def merged(hidden, head):
        return plain_loss(hidden, head.matrix + head.b @ head.a.T, softcap)

    def adapted(hidden, head):
        return loss_of(hidden, CappedHead(head, softcap) if softcap else head, 3, sharding)

    expected, result = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(HIDDEN, head)
        for loss in (merged, adapted)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), result, expected)
