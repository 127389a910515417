"""Supervised fine-tuning: cross-entropy of a demonstration, each token predicted from those before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.baselines import make_sft_update
from sdft_jax.algorithm.baselines.sft import cross_entropy
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import abstract_state, init_state
from sdft_jax.config import load_config
from tiny import EOS, PAD, tiny_batch, tiny_model

CONFIG = load_config(
    None,
    [
        "train.method=sft",
        "model.compute_dtype=float32",
        "train.batch_size=4",
        "divergence.chunk=8",
        "optimizer.learning_rate=1e-3",
        "optimizer.warmup=0",
        "optimizer.clip=0",
    ],
)


@pytest.fixture(scope="module")
def updated():
    """A batch -> state and metrics after one update with it; compiled once."""
    model, _ = tiny_model()
    optimizer = make_optimizer(CONFIG.optimizer, 10)
    update = make_sft_update(model, optimizer, CONFIG, eos_ids=(EOS,), pad_id=PAD)
    return lambda batch: jax.device_get(update(init_state(model, tiny_model()[1], optimizer, CONFIG), batch))


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(rows=4, completion=7)


@pytest.fixture(scope="module")
def result(updated, batch):
    return updated(batch)


def plain_loss(params, model, batch):
    """Mean over each demonstration's tokens, then over rows; here each row starts at the left."""
    prompts = [row[mask] for row, mask in zip(batch.prompt, batch.prompt_mask, strict=True)]
    targets = [row[mask] for row, mask in zip(batch.demonstration, batch.demonstration_mask, strict=True)]
    tokens = np.zeros((4, 16), np.int32)
    for row, pair in enumerate(zip(prompts, targets, strict=True)):
        tokens[row, : sum(map(len, pair))] = np.concatenate(pair)
    # What stands on the right of a token cannot be seen by it.
    log_s = jax.nn.log_softmax(model.logits(params, tokens, np.ones_like(tokens, bool)))
    total = 0.0
    for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        predicting = np.arange(len(prompt) - 1, len(prompt) + len(target) - 1)
        total += -jnp.mean(log_s[row, predicting, target])
    return total / 4


def test_loss_and_gradient_are_those_of_plain_log_softmax(batch, result):
    model, params = tiny_model()
    value, gradient = jax.jit(jax.value_and_grad(lambda p: plain_loss(p, model, batch)))(params)
    _, metrics = result
    assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)))
    assert metrics.scalars["grad_norm"] == pytest.approx(norm, rel=1e-4)
    # Adam's first moment is (1 - b1) times the first gradient.
    moment = next(x.mu for x in jax.tree.leaves(result[0].opt_state, is_leaf=is_adam) if is_adam(x))
    for ours, theirs in zip(jax.tree.leaves(moment), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours / 0.1, theirs, atol=2e-5, rtol=2e-3)


def is_adam(node) -> bool:
    return hasattr(node, "mu")


def test_token_gradient_is_that_of_float64_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 32)) * 5
    target = rng.integers(0, 32, size=6)
    _, value, gradient = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(target), ())
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(value, -np.log(softmax[np.arange(6), target]), rtol=1e-5)
    np.testing.assert_allclose(gradient, softmax - np.eye(32)[target], atol=1e-6)


def test_what_stands_in_the_padding_changes_nothing(updated, batch, result):
    rng = np.random.default_rng(1)
    other = dataclasses.replace(
        batch,
        demonstration=np.where(
            batch.demonstration_mask, batch.demonstration, rng.integers(2, 32, batch.demonstration.shape)
        ).astype(np.int32),
    )
    assert not batch.demonstration_mask.all()
    state, metrics = updated(other)
    assert float(metrics.scalars["loss"]) == result[1].scalars["loss"]
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(result[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_reports_lengths_and_keeps_no_teacher(batch, result):
    state, metrics = result
    lengths = batch.demonstration_mask.sum(axis=1)
    assert metrics.scalars["completion_length"] == pytest.approx(lengths.mean())
    assert metrics.scalars["completion_tokens"] == lengths.sum()
    assert metrics.scalars["cross_entropy"] == pytest.approx(
        metrics.divergence[batch.demonstration_mask].mean(), rel=1e-5
    )
    assert state.teacher == {}


def test_updates_of_other_learning_rates_are_the_same_program(batch):
    model, _ = tiny_model()
    programs = []
    for rate in (1e-5, 3e-4):
        config = dataclasses.replace(
            CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, learning_rate=rate)
        )
        optimizer = make_optimizer(config.optimizer, 10)
        update = make_sft_update(model, optimizer, config, eos_ids=(EOS,), pad_id=PAD)
        programs.append(update.lower(abstract_state(model, optimizer, config), batch).as_text())
    assert programs[0] == programs[1]
