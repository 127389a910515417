"""Dynamic fine-tuning: -sg(p) log p, against float64 NumPy and against SFT's parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.baselines import make_dft_update
from sdft_jax.algorithm.baselines.dft import dynamic_loss
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.config import load_config
from sdft_jax.sharding import Sharding, make_mesh
from tiny import EOS, PAD, tiny_batch, tiny_model

CONFIG = load_config(
    None,
    [
        "train.method=dft",
        "model.compute_dtype=float32",
        "train.batch_size=8",
        "divergence.chunk=8",
        "optimizer.learning_rate=1e-3",
        "optimizer.warmup=0",
        "optimizer.clip=0",
    ],
)


def test_token_loss_and_gradient_are_those_of_float64_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 32)) * 3
    target = rng.integers(0, 32, size=6)
    (logprob, loss), value, gradient = dynamic_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(target), ())
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    p = softmax[np.arange(6), target]
    np.testing.assert_allclose(logprob, np.log(p), rtol=1e-5)
    np.testing.assert_allclose(value, -p * np.log(p), rtol=1e-5)
    np.testing.assert_array_equal(loss, value)
    np.testing.assert_allclose(gradient, p[:, None] * (softmax - np.eye(32)[target]), atol=1e-6)


def test_the_probability_itself_has_no_gradient():
    """Automatic differentiation of -stop_gradient(p) log p, in place of the formula."""
    logits = jax.random.normal(jax.random.key(0), (5, 16)) * 2
    target = jnp.arange(5)

    def plain(logits):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)
        return -jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * log_p)

    np.testing.assert_allclose(dynamic_loss(logits, target, ())[2], jax.grad(plain)(logits), atol=1e-6)


def updated(mesh=None):
    model, params = tiny_model(None if mesh is None else Sharding(make_mesh(*mesh)))
    optimizer = make_optimizer(CONFIG.optimizer, 10)
    update = make_dft_update(model, optimizer, CONFIG, eos_ids=(EOS,), pad_id=PAD)
    return jax.device_get(update(init_state(model, params, optimizer, CONFIG), tiny_batch(completion=7)))


def plain_loss(params, model, batch):
    """Mean of -sg(p) log p over each demonstration's tokens, then over rows, from whole logits."""
    tokens = jnp.concatenate([batch.prompt, batch.demonstration], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.demonstration_mask], axis=1)
    logits = model.logits(params, tokens, mask)[:, batch.prompt.shape[1] - 1 : -1]
    target = jnp.asarray(batch.demonstration)[..., None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
    losses = jnp.where(batch.demonstration_mask, -jax.lax.stop_gradient(jnp.exp(log_p)) * log_p, 0.0)
    return jnp.mean(losses.sum(axis=1) / batch.demonstration_mask.sum(axis=1))


def test_update_follows_the_plain_loss_and_is_the_same_on_eight_devices():
    model, params = tiny_model()
    batch = tiny_batch(completion=7)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: plain_loss(p, model, batch)))(params)
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)))
    single, eight = updated(), updated((2, 2, 2))
    for _, metrics in (single, eight):
        assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-4)
        assert metrics.scalars["grad_norm"] == pytest.approx(norm, rel=1e-3)
    for ours, theirs in zip(jax.tree.leaves(eight[0]), jax.tree.leaves(single[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    shown, metrics = batch.demonstration_mask, single[1]
    p = np.exp(metrics.rollout.logprobs[shown])
    np.testing.assert_allclose(metrics.divergence[shown], -p * np.log(p), rtol=1e-5)
    assert metrics.scalars["cross_entropy"] == pytest.approx(
        -metrics.rollout.logprobs[shown].mean(), rel=1e-5
    )
