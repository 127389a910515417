"""The sections of a configuration: frozen, hashable, and refused if their values contradict each other."""

import dataclasses

import pytest

from sdft_jax.config import Config, load_config
from sdft_jax.config.settings import DivergenceConfig, ProfileConfig
from sdft_jax.errors import SdftError


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.batch_size = 3


def test_sections_with_dictionaries_are_hashable():
    config = load_config(
        None, ["data.template_kwargs.enable_thinking=false", "continual.stages=[{name: one}, {name: two}]"]
    )
    assert hash(config) == hash(dataclasses.replace(config))


def test_the_sampled_estimator_is_one_of_the_reverse_kl_only():
    assert DivergenceConfig(alpha=1.0, support="sampled").support == "sampled"
    with pytest.raises(
        SdftError, match=r"divergence\.support=sampled .* divergence\.alpha=0\.0: set .*alpha=1"
    ):
        DivergenceConfig(alpha=0.0, support="sampled")


def test_bounds_of_a_profile():
    assert ProfileConfig().bounds is None
    assert ProfileConfig(steps="10:13").bounds == (10, 13)
    assert ProfileConfig(steps="7:7").bounds == (7, 7)


@pytest.mark.parametrize("steps", ["0:3", "5:4"])
def test_profiles_of_no_steps_are_refused(steps):
    with pytest.raises(
        SdftError, match=rf"profile\.steps={steps} is not a range of steps: give FIRST:LAST, counted from 1"
    ):
        ProfileConfig(steps=steps)
