"""Supervised and dynamic fine-tuning: the cross-entropy of demonstrations, each token predicted from those
before it, compared with plain log-softmax and float64 NumPy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm import init_state, make_update
from sdft_jax.algorithm.imitation import confidence_loss, cross_entropy
from sdft_jax.types import Sequences
from tiny import tiny_batch, tiny_learner, tiny_model

SETTINGS = (
    "divergence.chunk=8",
    "optimizer.learning_rate=1e-3",
    "optimizer.warmup=0",
    "optimizer.clip=0",
)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# The losses of a token


def test_cross_entropy_and_its_gradient_equal_float64_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 32)) * 5
    target = rng.integers(0, 32, size=6)
    (logprob, loss), value, gradient = cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(target), ()
    )
    log_s = log_softmax(logits)
    expected = log_s[np.arange(6), target]
    np.testing.assert_allclose(value, -expected, rtol=1e-5)
    np.testing.assert_array_equal(loss, value)
    np.testing.assert_array_equal(logprob, -value)
    np.testing.assert_allclose(gradient, np.exp(log_s) - np.eye(32)[target], atol=1e-6)


def test_confidence_loss_and_its_gradient_equal_float64_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 32)) * 3
    target = rng.integers(0, 32, size=6)
    (logprob, loss), value, gradient = confidence_loss(
        jnp.asarray(logits, jnp.float32), jnp.asarray(target), ()
    )
    softmax = np.exp(log_softmax(logits))
    p = softmax[np.arange(6), target]
    np.testing.assert_allclose(logprob, np.log(p), rtol=1e-5)
    np.testing.assert_allclose(value, -p * np.log(p), rtol=1e-5)
    np.testing.assert_array_equal(loss, value)
    np.testing.assert_allclose(gradient, p[:, None] * (softmax - np.eye(32)[target]), atol=1e-6)


def test_the_confidence_itself_has_no_gradient():
    """The reference is the automatic derivative of -stop_gradient(p) log p."""
    logits = jax.random.normal(jax.random.key(0), (5, 16)) * 2
    target = jnp.arange(5)

    def plain(logits):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1)
        return -jnp.sum(jax.lax.stop_gradient(jnp.exp(log_p)) * log_p)

    np.testing.assert_allclose(confidence_loss(logits, target, ())[2], jax.grad(plain)(logits), atol=1e-6)


# Supervised fine-tuning


@pytest.fixture(scope="module")
def sft():
    """A function of a batch that returns (state, metrics) after one update; compiled once."""
    learner, _ = tiny_learner("train.method=sft", "train.batch_size=4", *SETTINGS)
    update = make_update(learner)
    return lambda batch: jax.device_get(update(init_state(learner, tiny_model()[1]), batch))


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(rows=4, completion=7)


@pytest.fixture(scope="module")
def result(sft, batch):
    return sft(batch)


def plain_cross_entropy(params, model, batch):
    """Return the mean over each target's tokens, then over rows; each row is moved to the left edge."""
    prompts = [row[mask] for row, mask in zip(batch.prompt.tokens, batch.prompt.mask, strict=True)]
    targets = [row[mask] for row, mask in zip(batch.target.tokens, batch.target.mask, strict=True)]
    tokens = np.zeros((4, 16), np.int32)
    for row, pair in enumerate(zip(prompts, targets, strict=True)):
        tokens[row, : sum(map(len, pair))] = np.concatenate(pair)
    # Attention is causal, so that the zeros to the right of a token do not affect it.
    log_s = jax.nn.log_softmax(model.logits(params, Sequences(tokens, np.ones_like(tokens, bool))))
    total = 0.0
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        predicting = np.arange(len(prompt) - 1, len(prompt) + len(target) - 1)
        total += -jnp.mean(log_s[row, predicting, target])
    return total / 4


def norm(gradient):
    return np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)))


def has_moments(node) -> bool:
    return hasattr(node, "mu")


def test_sft_loss_and_gradient_equal_those_of_plain_log_softmax(batch, result):
    model, params = tiny_model()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: plain_cross_entropy(p, model, batch)))(params)
    state, metrics = result
    assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics.scalars["grad_norm"] == pytest.approx(norm(gradient), rel=1e-4)
    # Adam's first moment is (1 - b1) times the first gradient.
    moment = next(x.mu for x in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(x))
    for ours, theirs in zip(jax.tree.leaves(moment), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours / 0.1, theirs, atol=2e-5, rtol=2e-3)


def test_the_tokens_in_the_padding_have_no_effect(sft, batch, result):
    rng = np.random.default_rng(1)
    tokens, mask = batch.target.tokens, batch.target.mask
    noise = rng.integers(2, 32, tokens.shape)
    other = dataclasses.replace(batch, target=Sequences(np.where(mask, tokens, noise).astype(np.int32), mask))
    assert not mask.all()
    state, metrics = sft(other)
    assert float(metrics.scalars["loss"]) == result[1].scalars["loss"]
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(result[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_metrics_have_lengths_and_cross_entropy_and_the_state_has_no_teacher(batch, result):
    state, metrics = result
    mask = batch.target.mask
    lengths = mask.sum(axis=1)
    assert metrics.scalars["completion_length"] == pytest.approx(lengths.mean())
    assert metrics.scalars["completion_tokens"] == lengths.sum()
    assert metrics.scalars["cross_entropy"] == pytest.approx(metrics.divergence[mask].mean(), rel=1e-5)
    assert state.teacher == {}


# Dynamic fine-tuning


def dft(mesh=None):
    learner, params = tiny_learner("train.method=dft", *SETTINGS, mesh=mesh)
    return jax.device_get(make_update(learner)(init_state(learner, params), tiny_batch(completion=7)))


def plain_confidence_loss(params, model, batch):
    """Return the mean of -sg(p) log p over each target's tokens, then over rows, from whole logits."""
    both = Sequences(
        jnp.concatenate([batch.prompt.tokens, batch.target.tokens], axis=1),
        jnp.concatenate([batch.prompt.mask, batch.target.mask], axis=1),
    )
    logits = model.logits(params, both)[:, batch.prompt.tokens.shape[1] - 1 : -1]
    target = jnp.asarray(batch.target.tokens)[..., None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
    losses = jnp.where(batch.target.mask, -jax.lax.stop_gradient(jnp.exp(log_p)) * log_p, 0.0)
    return jnp.mean(losses.sum(axis=1) / batch.target.mask.sum(axis=1))


def test_dft_equals_the_plain_loss_and_is_the_same_on_eight_devices():
    model, params = tiny_model()
    batch = tiny_batch(completion=7)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: plain_confidence_loss(p, model, batch)))(params)
    single, eight = dft(), dft((2, 2, 2))
    for _, metrics in (single, eight):
        assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-4)
        assert metrics.scalars["grad_norm"] == pytest.approx(norm(gradient), rel=1e-3)
    for ours, theirs in zip(jax.tree.leaves(eight[0]), jax.tree.leaves(single[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    mask, metrics = batch.target.mask, single[1]
    p = np.exp(metrics.rollout.logprobs[mask])
    np.testing.assert_allclose(metrics.divergence[mask], -p * np.log(p), rtol=1e-5)
    assert metrics.scalars["cross_entropy"] == pytest.approx(-metrics.rollout.logprobs[mask].mean(), rel=1e-5)
