"""Speeds are tokens over the seconds of their phase."""

import numpy as np
import pytest
from tiny import EOS, PAD, tiny_batch, tiny_model

from sdft_jax.config import load_config
from sdft_jax.optimizer import make_optimizer
from sdft_jax.phases import speeds, time_sampling
from sdft_jax.prepare import Prepared
from sdft_jax.prompts import Dropped
from sdft_jax.state import init_state

BATCH = tiny_batch(rows=4)


def test_speeds_by_hand():
    prompts, taught = BATCH.prompt_mask.sum(), BATCH.teacher_mask.sum()
    scalars = {"completion_tokens": 40.0}
    assert speeds(scalars, BATCH, 2.0, None) == {"seconds": 2.0, "tokens_per_second": 20.0}
    timed = speeds(scalars, BATCH, 2.0, (0.5, 40))
    assert timed["rollout_tokens_per_second"] == 80.0
    assert timed["learn_tokens_per_second"] == pytest.approx((prompts + taught + 80) / 1.5)
    off_policy = speeds(scalars, BATCH, 2.0, (0.0, 0))
    assert off_policy.keys() == {"seconds", "tokens_per_second", "learn_tokens_per_second"}
    assert off_policy["learn_tokens_per_second"] == pytest.approx((prompts + 40) / 2)
    assert "learn_tokens_per_second" not in speeds(scalars, BATCH, 0.4, (0.5, 40))


@pytest.mark.parametrize("method", ["sdft", "sft"])
def test_sampling_is_timed_where_there_is_any(method):
    config = load_config(
        None, [f"train.method={method}", "sampling.max_new_tokens=3", "train.batch_size=4",
               "model.compute_dtype=float32"]
    )  # fmt: skip
    model, params = tiny_model()
    state = init_state(model, params, make_optimizer(config.optimizer, 1), config)
    prepared = Prepared("", None, (EOS,), PAD, (), Dropped(), None, None)
    seconds, tokens = time_sampling(model, state, BATCH, config, prepared)
    if method == "sft":
        assert (seconds, tokens) == (0.0, 0)
    else:
        assert seconds > 0
        assert tokens in np.arange(4, 13)
