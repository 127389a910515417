"""SFT + re-invoke: each phase is the method that it says it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.baselines import imitation_steps, make_reinvoke_update, make_sft_update
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.algorithm.update import make_update
from sdft_jax.config import load_config
from sdft_jax.sharding import Sharding, make_mesh
from tiny import EOS, PAD, tiny_batch, tiny_model

UPDATES = {"reinvoke": make_reinvoke_update, "sft": make_sft_update, "sdft": make_update}
SHOWN = tiny_batch(completion=7)
GENERAL = dataclasses.replace(
    tiny_batch(seed=1), teacher_prompt=np.zeros((8, 0), np.int32), teacher_mask=np.zeros((8, 0), bool)
)


@functools.cache
def compiled(method, *overrides, mesh=None):
    """(state before the first step, update)."""
    config = load_config(
        None,
        [
            f"train.method={method}",
            "model.compute_dtype=float32",
            "train.batch_size=8",
            "divergence.chunk=16",
            "sampling.max_new_tokens=6",
            "optimizer.learning_rate=1e-2",
            "optimizer.warmup=0",
            "optimizer.clip=0",
            "data.general=unused",
            *overrides,
        ],
    )
    model, params = tiny_model(None if mesh is None else Sharding(make_mesh(*mesh)))
    optimizer = make_optimizer(config.optimizer, 10)
    update = UPDATES[method](model, optimizer, config, eos_ids=(EOS,), pad_id=PAD)
    return init_state(model, params, optimizer, config), update


def copied(state):
    return jax.tree.map(jnp.copy, state)  # an update donates its state


@pytest.fixture(scope="module")
def phases():
    """(state, metrics) after a batch with demonstrations, and after a general one on top of it."""
    state, update = compiled("reinvoke", "divergence.alpha=0")
    first = update(copied(state), SHOWN)
    second = update(copied(first[0]), GENERAL)
    return first, jax.device_get(second)


def test_the_first_phase_is_sft(phases):
    state, update = compiled("sft")
    expected, expected_metrics = update(copied(state), SHOWN)
    found, metrics = phases[0]
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, metrics, expected_metrics)


def test_the_second_phase_is_on_policy_distillation_of_the_initial_model(phases):
    """SDFT by the reverse KL with a frozen teacher that sees what the student sees, on the same state."""
    _, update = compiled("sdft", "teacher.schedule=frozen", "divergence.alpha=1")
    same = dataclasses.replace(GENERAL, teacher_prompt=GENERAL.prompt, teacher_mask=GENERAL.prompt_mask)
    expected, expected_metrics = jax.device_get(update(copied(phases[0][0]), same))
    found, metrics = phases[1]
    assert metrics.scalars["loss"] > 1e-3
    np.testing.assert_array_equal(metrics.rollout.tokens, expected_metrics.rollout.tokens)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)
    _, initial = tiny_model()
    jax.tree.map(np.testing.assert_array_equal, found.teacher, initial)


def test_nothing_is_learned_where_nothing_was_forgotten():
    state, update = compiled("reinvoke", "divergence.alpha=0")
    _, metrics = update(copied(state), GENERAL)
    assert abs(metrics.scalars["loss"]) < 1e-6
    assert metrics.scalars["grad_norm"] < 1e-5


def test_each_phase_compiles_once(phases):
    state, update = compiled("reinvoke", "divergence.alpha=0")
    state = copied(state)
    for batch in (SHOWN, GENERAL, SHOWN, GENERAL):
        state, _ = update(state, batch)
    assert update._cache_size() == 2


def test_same_on_eight_devices(phases):
    state, update = compiled("reinvoke", mesh=(2, 2, 2))
    before = jax.tree.map(lambda x, at: jax.device_put(x, at.sharding), jax.device_get(phases[0][0]), state)
    found, metrics = update(before, GENERAL)
    expected, expected_metrics = phases[1]
    np.testing.assert_array_equal(metrics.rollout.tokens, expected_metrics.rollout.tokens)
    for ours, theirs in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("share", "imitated"), [(0.0, 10), (0.25, 8), (0.5, 5), (0.7, 3), (1.0, 0)])
def test_steps_of_the_first_phase(share, imitated):
    config = load_config(None, [f"train.reinvoke={share}"])
    assert imitation_steps(config, 10) == imitated
