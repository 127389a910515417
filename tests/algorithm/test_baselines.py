"""The table of updates covers the table of methods; the oracle trains nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from sdft_jax.algorithm.baselines import UPDATES, make_oracle_update
from sdft_jax.algorithm.optimizer import make_optimizer
from sdft_jax.algorithm.state import init_state
from sdft_jax.config import load_config
from sdft_jax.config.methods import METHODS
from tiny import EOS, PAD, tiny_batch, tiny_model


def test_every_method_has_an_update():
    assert UPDATES.keys() == METHODS.keys()


def test_methods_that_differ_in_their_data_alone_share_an_update():
    assert UPDATES["sft"] is UPDATES["joint"] is UPDATES["cpt"]
    assert len(set(UPDATES.values())) == len(UPDATES) - 2


def test_what_a_method_imitates_no_teacher_samples():
    for name, method in METHODS.items():
        assert method.samples != "teacher" or method.completion is None, name
        assert (method.samples is None) == (method.teacher is None), name


def test_the_oracle_counts_steps_and_nothing_else():
    config = load_config(None, ["train.method=oracle", "train.batch_size=8"])
    model, params = tiny_model()
    optimizer = make_optimizer(config.optimizer, 10)
    state = init_state(model, params, optimizer, config)
    before = jax.device_get(state)
    update = make_oracle_update(model, optimizer, config, eos_ids=(EOS,), pad_id=PAD)
    after, metrics = update(jax.tree.map(jnp.copy, state), tiny_batch())
    assert after.step == 1
    for part in ("params", "opt_state", "teacher", "key"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))
    assert metrics.rollout.tokens.shape == metrics.divergence.shape == (8, 0)
    assert {float(x) for name, x in metrics.scalars.items() if name != "prompt_padding"} == {0.0}
    assert metrics.scalars.keys() >= {"loss", "grad_norm", "update_norm", "completion_tokens"}
