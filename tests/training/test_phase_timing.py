"""Speeds are tokens over the seconds of their phase."""

import dataclasses

import numpy as np
import pytest

from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.config import load_config
from sdft_jax.data.encoding import Dropped
from sdft_jax.training import phase_timing
from sdft_jax.training.inputs import Prepared
from sdft_jax.training.phase_timing import speeds, time_sampling
from sdft_jax.types import Rollout
from tiny import EOS, PAD, tiny_batch, tiny_model

BATCH = tiny_batch(rows=4)
GENERAL = dataclasses.replace(
    BATCH, teacher_prompt=BATCH.prompt[:, :0], teacher_mask=BATCH.prompt_mask[:, :0]
)
SHOWN = tiny_batch(rows=4, completion=5)


def test_speeds_by_hand():
    prompts, taught = BATCH.prompt_mask.sum(), BATCH.teacher_mask.sum()
    scalars = {"completion_tokens": 40.0}
    assert speeds(scalars, BATCH, 2.0, None) == {"seconds": 2.0, "tokens_per_second": 20.0}
    taught_scalars = scalars | {"divergence": 0.1}
    timed = speeds(taught_scalars, BATCH, 2.0, (0.5, 40))
    assert timed["rollout_tokens_per_second"] == 80.0
    assert timed["learn_tokens_per_second"] == pytest.approx((prompts + taught + 80) / 1.5)
    off_policy = speeds(scalars, BATCH, 2.0, (0.0, 0))
    assert off_policy.keys() == {"seconds", "tokens_per_second", "learn_tokens_per_second"}
    assert off_policy["learn_tokens_per_second"] == pytest.approx((prompts + 40) / 2)
    assert "learn_tokens_per_second" not in speeds(scalars, BATCH, 0.4, (0.5, 40))
    teachers_tokens = speeds(scalars, BATCH, 2.0, (0.5, 40))  # sampled by the teacher, scored by nobody else
    assert teachers_tokens["learn_tokens_per_second"] == pytest.approx((prompts + 40) / 1.5)
    assert teachers_tokens["rollout_tokens_per_second"] == 80.0
    same_prompt = speeds(taught_scalars, GENERAL, 2.0, (0.5, 40))
    assert same_prompt["learn_tokens_per_second"] == pytest.approx((2 * prompts + 80) / 1.5)


@pytest.mark.parametrize(
    ("method", "batch", "samples"),
    [
        ("sdft", BATCH, True),
        ("sdft", SHOWN, True),
        ("sft", SHOWN, False),
        ("reinvoke", SHOWN, False),
        ("reinvoke", GENERAL, True),
    ],
)
def test_sampling_is_timed_where_there_is_any(method, batch, samples):
    config, model, state = setup(method)
    seconds, tokens = time_sampling(model, state, batch, config, PREPARED)
    if samples:
        assert seconds > 0
        assert tokens in np.arange(4, 13)
    else:
        assert (seconds, tokens) == (0.0, 0)


def test_offline_sampling_is_the_teachers(monkeypatch):
    config, model, state = setup("offline")
    asked = []

    def note(model, params, prompt, *rest):
        asked.append((params, prompt))
        return Rollout(np.zeros((4, 3)), np.ones((4, 3), bool), np.zeros((4, 3)))

    monkeypatch.setattr(phase_timing, "compiled_sample", note)
    assert time_sampling(model, state, BATCH, config, PREPARED)[1] == 12
    params, prompt = asked[-1]
    assert params["embed"] is state.teacher["embed"]
    assert prompt is BATCH.teacher_prompt


PREPARED = Prepared("", None, (EOS,), PAD, (), Dropped(), None, None)


def setup(method):
    config = load_config(
        None,
        [
            f"train.method={method}",
            "sampling.max_new_tokens=3",
            "train.batch_size=4",
            "model.compute_dtype=float32",
            "data.general=unused",
        ],
    )
    model, params = tiny_model()
    return config, model, init_state(model, params, make_optimizer(config.optimizer, 1), config)
