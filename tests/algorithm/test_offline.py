"""Offline distillation: whose samples, when, and what is learned from them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.baselines import make_offline_kl_update, make_offline_update
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.algorithm.token_weights import aggregation_weights
from sdft_jax.algorithm.update import Rows, completion_hidden, distillation_loss
from sdft_jax.config import load_config
from sdft_jax.sampling.decode import generate
from sdft_jax.sharding import Sharding, make_mesh
from tiny import EOS, PAD, tiny_batch, tiny_model

UPDATES = {"offline": make_offline_update, "offline_kl": make_offline_kl_update}
BATCH = tiny_batch()
SKIPPED = 1


@functools.cache
def compiled(method, mesh=None):
    """(config, model, state, update); the student has left the teacher, as after some steps."""
    config = load_config(
        None,
        [
            f"train.method={method}",
            "model.compute_dtype=float32",
            "train.batch_size=8",
            "divergence.chunk=16",
            "sampling.max_new_tokens=6",
            "optimizer.learning_rate=1e-3",
            "optimizer.warmup=0",
            "optimizer.clip=0",
            f"objective.skip_tokens={SKIPPED}",
            "objective.importance=sequence",
            "teacher.schedule=ema",
        ],
    )
    model, params = tiny_model(None if mesh is None else Sharding(make_mesh(*mesh)))
    optimizer = make_optimizer(config.optimizer, 10)
    update = UPDATES[method](model, optimizer, config, eos_ids=(EOS,), pad_id=PAD)
    state = init_state(model, params, optimizer, config)
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: 0.9 * p, state.params))
    return config, model, state, update


def run(method, batch=BATCH, mesh=None, step=0):
    _, _, state, update = compiled(method, mesh)
    state = jax.tree.map(jnp.copy, state)  # an update donates its state
    return jax.device_get(update(dataclasses.replace(state, step=jnp.int32(step)), batch))


@pytest.fixture(scope="module")
def imitated():
    return run("offline")


@pytest.fixture(scope="module")
def distilled():
    return run("offline_kl")


def test_samples_are_the_initial_teachers_one_for_each_row(imitated, distilled):
    config, model, _, _ = compiled("offline")
    _, params = tiny_model()
    seed = jax.random.key(config.train.seed)
    keys = jnp.stack([jax.random.fold_in(seed, row) for row in range(8)])
    expected = generate(
        model,
        params,
        BATCH.teacher_prompt,
        BATCH.teacher_mask,
        key=keys,
        max_new_tokens=6,
        eos_ids=EOS,
        pad_id=PAD,
    )
    assert len(np.unique(expected.tokens, axis=0)) > 4
    for _, metrics in (imitated, distilled):
        np.testing.assert_array_equal(metrics.rollout.tokens, expected.tokens)
        np.testing.assert_array_equal(metrics.rollout.mask, expected.mask)
    np.testing.assert_allclose(distilled[1].rollout.logprobs, expected.logprobs, atol=1e-5)


def test_every_pass_meets_the_same_samples(imitated):
    """At another step, and in another order of rows."""
    order = np.random.default_rng(0).permutation(8)
    again = run("offline", jax.tree.map(lambda x: x[order], BATCH), step=5)
    np.testing.assert_array_equal(again[1].rollout.tokens, imitated[1].rollout.tokens[order])


def loss_mask(rollout):
    return rollout.mask & (np.arange(6) >= SKIPPED)


def plain_cross_entropy(params, model, rollout):
    """Given the student's prompt; mean over the tokens that count, then over rows; from whole logits."""
    tokens = jnp.concatenate([BATCH.prompt, rollout.tokens], axis=1)
    mask = jnp.concatenate([BATCH.prompt_mask, rollout.mask], axis=1)
    logits = model.logits(params, tokens, mask)[:, BATCH.prompt.shape[1] - 1 : -1]
    target = jnp.asarray(rollout.tokens)[..., None]
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target, axis=-1)[..., 0]
    counted = loss_mask(rollout)
    return jnp.mean(jnp.where(counted, -log_p, 0.0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1))


def divergence_loss(params, model, rollout):
    """The full reverse KL without importance ratios, from the teacher given its own prompt."""
    config, _, state, _ = compiled("offline_kl")
    plain = dataclasses.replace(config, objective=dataclasses.replace(config.objective, importance="log"))
    mask = jnp.asarray(loss_mask(rollout))
    weights = aggregation_weights(mask, jnp.asarray(BATCH.weight), plain.objective)
    rows = Rows(*jax.tree.map(jnp.asarray, (BATCH, rollout)), mask, weights)
    return distillation_loss(model, params, state.teacher, rows, plain)[0]


@pytest.mark.parametrize(
    ("result", "loss"), [("imitated", plain_cross_entropy), ("distilled", divergence_loss)]
)
def test_loss_and_gradient(request, result, loss):
    after, metrics = request.getfixturevalue(result)
    _, model, state, _ = compiled("offline_kl")
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, model, metrics.rollout)))(state.params)
    assert metrics.scalars["loss"] == pytest.approx(float(value), rel=1e-4)
    (moment,) = [
        x.mu for x in jax.tree.leaves(after.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu")
    ]
    for ours, theirs in zip(jax.tree.leaves(moment), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours / 0.1, theirs, atol=5e-5, rtol=2e-3)


def test_distance_is_that_from_the_teachers_distribution(distilled):
    """The reverse KL of every token in float64 NumPy."""
    _, metrics = distilled
    _, model, state, _ = compiled("offline_kl")

    def log_probs(params, prompt, mask):
        scored = map(jnp.asarray, (prompt, mask, metrics.rollout.tokens, metrics.rollout.mask))
        hidden = jax.jit(lambda *arrays: completion_hidden(model, *arrays))(params, *scored)
        logits = np.float64(jnp.einsum("btd,vd->btv", hidden, model.head(params)))
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    student = log_probs(state.params, BATCH.prompt, BATCH.prompt_mask)
    teacher = log_probs(state.teacher, BATCH.teacher_prompt, BATCH.teacher_mask)
    expected = (np.exp(student) * (student - teacher)).sum(axis=-1)
    shown = metrics.rollout.mask
    np.testing.assert_allclose(metrics.divergence[shown], expected[shown], atol=1e-3, rtol=1e-3)


def test_what_stands_in_the_padding_changes_nothing(imitated):
    junk = dataclasses.replace(
        BATCH,
        prompt=np.where(BATCH.prompt_mask, BATCH.prompt, 7).astype(np.int32),
        teacher_prompt=np.where(BATCH.teacher_mask, BATCH.teacher_prompt, 9).astype(np.int32),
    )
    jax.tree.map(np.testing.assert_array_equal, run("offline", junk), imitated)


def test_same_on_eight_devices(distilled):
    state, metrics = run("offline_kl", mesh=(2, 2, 2))
    np.testing.assert_array_equal(metrics.rollout.tokens, distilled[1].rollout.tokens)
    assert metrics.scalars["loss"] == pytest.approx(distilled[1].scalars["loss"], rel=1e-4)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(distilled[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)
