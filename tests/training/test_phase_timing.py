"""Throughputs are tokens divided by the seconds of their phase."""

import dataclasses

import numpy as np
import pytest

from sdft_jax.algorithm import init_state
from sdft_jax.training import phase_timing
from sdft_jax.training.phase_timing import SamplingTime, throughputs, time_sampling
from sdft_jax.types import Rollout, Sequences
from tiny import tiny_batch, tiny_learner

BATCH = tiny_batch(rows=4)
GENERAL = dataclasses.replace(
    BATCH, teacher_prompt=Sequences(BATCH.prompt.tokens[:, :0], BATCH.prompt.mask[:, :0])
)
TARGETS = tiny_batch(rows=4, completion=5)


def test_throughputs_of_a_known_case():
    prompts, teacher_prompts = BATCH.prompt.mask.sum(), BATCH.teacher_prompt.mask.sum()
    scalars = {"completion_tokens": 40.0}
    assert throughputs(scalars, BATCH, 2.0, None) == {"seconds": 2.0, "tokens_per_second": 20.0}
    distilled = scalars | {"divergence": 0.1}
    timed = throughputs(distilled, BATCH, 2.0, SamplingTime(0.5, 40))
    assert timed["rollout_tokens_per_second"] == 80.0
    assert timed["learn_tokens_per_second"] == pytest.approx((prompts + teacher_prompts + 80) / 1.5)
    off_policy = throughputs(scalars, BATCH, 2.0, SamplingTime(0.0, 0))
    assert off_policy.keys() == {"seconds", "tokens_per_second", "learn_tokens_per_second"}
    assert off_policy["learn_tokens_per_second"] == pytest.approx((prompts + 40) / 2)
    assert "learn_tokens_per_second" not in throughputs(scalars, BATCH, 0.4, SamplingTime(0.5, 40))
    student_only = throughputs(scalars, BATCH, 2.0, SamplingTime(0.5, 40))
    assert student_only["learn_tokens_per_second"] == pytest.approx((prompts + 40) / 1.5)
    assert student_only["rollout_tokens_per_second"] == 80.0
    same_prompt = throughputs(distilled, GENERAL, 2.0, SamplingTime(0.5, 40))
    assert same_prompt["learn_tokens_per_second"] == pytest.approx((2 * prompts + 80) / 1.5)


def setup(method):
    """Return a learner of a method, and its initial state."""
    learner, params = tiny_learner(
        f"train.method={method}",
        "sampling.max_new_tokens=3",
        "train.batch_size=4",
        "data.general=unused",
        steps=1,
    )
    return learner, init_state(learner, params)


@pytest.mark.parametrize(
    ("method", "batch", "samples"),
    [
        ("sdft", BATCH, True),
        ("sdft", TARGETS, True),
        ("sft", TARGETS, False),
        ("reinvoke", TARGETS, False),
        ("reinvoke", GENERAL, True),
    ],
)
def test_sampling_is_timed_if_the_method_samples(method, batch, samples):
    sampling = time_sampling(*setup(method), batch)
    if samples:
        assert sampling.seconds > 0
        assert sampling.tokens in np.arange(4, 13)
    else:
        assert sampling == SamplingTime(0.0, 0)


def test_offline_completions_are_sampled_from_the_teacher(monkeypatch):
    learner, state = setup("offline")
    calls = []

    def compiled_sample(model, params, prompt, *rest):
        calls.append((params, prompt))
        return Rollout(np.zeros((4, 3)), np.ones((4, 3), bool), np.zeros((4, 3)))

    monkeypatch.setattr(phase_timing, "compiled_sample", compiled_sample)
    assert time_sampling(learner, state, BATCH).tokens == 12
    params, prompt = calls[-1]
    assert params["embed"] is state.teacher["embed"]
    assert prompt is BATCH.teacher_prompt
