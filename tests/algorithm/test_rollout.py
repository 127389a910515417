"""The completions that an update trains on: whose samples they are, and when they are the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.rollout import student_rollout, target_rollout, teacher_rollout
from sdft_jax.algorithm.state import init_state
from sdft_jax.sampling import generate
from tiny import tiny_batch, tiny_learner, tiny_model

BATCH = tiny_batch()
ROLLOUTS = {"sdft": student_rollout, "offline": teacher_rollout}


@pytest.fixture(scope="module", params=ROLLOUTS)
def sampled(request):
    """(method, learner, state, jitted rollout); the student differs from its teacher."""
    learner, params = tiny_learner(
        f"train.method={request.param}", "sampling.max_new_tokens=6", "optimizer.freeze=[norm$]"
    )
    state = init_state(learner, params)
    state = dataclasses.replace(state, params=jax.tree.map(lambda p: 0.9 * p, state.params))
    roll_out = ROLLOUTS[request.param]
    return request.param, learner, state, jax.jit(lambda state, batch: roll_out(learner, state, batch))


def threefry(seed):
    return jax.random.key(seed, impl="threefry2x32")


def test_rollout_is_that_of_generate(sampled):
    """The student's keys are those of step and position; the teacher's are those of the row's index."""
    method, learner, state, roll_out = sampled
    _, initial = tiny_model()
    seed = threefry(learner.config.train.seed)
    if method == "sdft":
        student = jax.tree.map(lambda p: 0.9 * p, initial)
        student |= {name: initial[name] for name in initial if name == "norm"}
        student["layers"] |= {n: initial["layers"][n] for n in initial["layers"] if n.endswith("norm")}
        params, prompt = student, BATCH.prompt
        step_key = jax.random.fold_in(seed, 3)
        keys = [jax.random.fold_in(step_key, position) for position in range(8)]
    else:
        params, prompt = initial, BATCH.teacher_prompt
        keys = [jax.random.fold_in(seed, row) for row in range(8)]
    expected = generate(learner.model, params, prompt, jnp.stack(keys), learner.config.sampling, learner.stop)
    rollout = roll_out(dataclasses.replace(state, step=jnp.int32(3)), BATCH)
    assert len(np.unique(expected.tokens, axis=0)) > 4
    np.testing.assert_array_equal(rollout.tokens, expected.tokens)
    np.testing.assert_array_equal(rollout.mask, expected.mask)
    np.testing.assert_allclose(rollout.logprobs, expected.logprobs, atol=1e-5)


def test_only_the_samples_of_the_student_differ_from_step_to_step(sampled):
    """The teacher's samples of a row are the same at every step and in every order of the rows."""
    method, _, state, roll_out = sampled
    first = roll_out(state, BATCH)
    later = dataclasses.replace(state, step=jnp.int32(1))
    if method == "sdft":
        assert not np.array_equal(roll_out(later, BATCH).tokens, first.tokens)
    else:
        order = np.random.default_rng(0).permutation(8)
        again = roll_out(later, jax.tree.map(lambda x: x[order], BATCH))
        np.testing.assert_array_equal(again.tokens, first.tokens[order])


def test_rollout_is_the_same_under_another_default_generator(sampled):
    """With `rbg` keys under `vmap`, a row's numbers would depend on the other rows of its batch."""
    method, learner, state, roll_out = sampled
    expected = roll_out(state, BATCH)
    params = tiny_model()[1]
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        other = dataclasses.replace(init_state(learner, params), params=state.params)
        rollout = jax.jit(lambda state, batch: ROLLOUTS[method](learner, state, batch))(other, BATCH)
    finally:
        jax.config.update("jax_default_prng_impl", before)
    np.testing.assert_array_equal(other.key, state.key)
    jax.tree.map(np.testing.assert_array_equal, rollout, expected)


def test_target_rollout_is_the_targets_without_log_probabilities():
    batch = tiny_batch(completion=7)
    rollout = target_rollout(batch)
    np.testing.assert_array_equal(rollout.tokens, batch.target.tokens)
    np.testing.assert_array_equal(rollout.mask, batch.target.mask)
    np.testing.assert_array_equal(rollout.logprobs, np.zeros((8, 7)))
    assert rollout.logprobs.dtype == jnp.float32
