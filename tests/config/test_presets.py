"""Presets: the recommended settings and those of the released code."""

import pytest

from sdft_jax.config import PRESETS, Config, describe, flatten, keys, load_config


def test_defaults_are_the_sdft_preset():
    assert load_config(None) == Config()
    assert describe(Config()) == []


def test_official_preset_has_the_settings_of_the_released_code():
    config = load_config(None, ["preset=official"])
    assert config.divergence.alpha == 0
    assert (config.objective.skip_tokens, config.objective.importance) == (3, "sequence")
    assert (config.teacher.rate, config.teacher.dtype) == (0.01, "bfloat16")
    assert config.data.max_prompt == config.data.max_teacher_prompt == 1024
    assert (config.optimizer.learning_rate, config.optimizer.warmup) == (2e-5, 0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_and_set_known_keys(name):
    assert flatten(PRESETS[name]).keys() <= set(keys())
    assert load_config(None, [f"preset={name}"]).preset == name
