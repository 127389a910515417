"""The sections of a configuration: frozen, hashable, and refused if their values contradict each other."""

import dataclasses

import pytest

from sdft_jax.config import Config, load_config
from sdft_jax.config.settings import DivergenceConfig, OptimizerConfig, ProfileConfig
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


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "judge.key=sk-secret-123",
            r"judge\.key is not the name of an environment variable: put the key into",
        ),
        ("judge.key=", r"judge\.key is not the name of an environment variable"),
        (
            "judge.url=http://me:secret@host/v1",
            r"judge\.url is not a URL of http without a user name: give one",
        ),
        ("judge.url=sk-secret-123", r"judge\.url is not a URL of http"),
        ("judge.url=localhost:8000/v1", r"judge\.url is not a URL of http"),
        ("judge.url=http://[/v1", r"judge\.url is not a URL of http"),
        ("judge.url=http://host:0/v1", r"judge\.url is not a URL of http"),
        ("judge.url=http://host/v1", r"judge\.url is set and judge\.model is not: set judge\.model"),
    ],
)
def test_mistakes_in_the_endpoint_are_refused_without_quoting_a_key(setting, problem):
    with pytest.raises(SdftError, match=problem) as raised:
        load_config(None, [setting])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"name": "adafactor", "b1": 0.9}, r"optimizer\.name=adamw or lion\."),
        ({"name": "adafactor", "b2": 0.999}, r"optimizer\.name=adamw or lion\."),
        ({"name": "adafactor", "moments": "float8"}, r"optimizer\.name=adamw or lion\."),
        ({"name": "lion", "eps": 1e-6}, r"optimizer\.name=adamw\."),
    ],
    ids=str,
)
def test_a_constant_that_the_optimizer_does_not_read_is_refused(settings, remedy):
    key = list(settings)[1]
    with pytest.raises(
        SdftError, match=rf"optimizer\.{key}=.* has no effect with .*: remove it, or set {remedy}"
    ):
        OptimizerConfig(**settings)


def test_constants_of_an_optimizer_have_its_own_defaults():
    assert OptimizerConfig().constant("b2") == 0.999
    assert OptimizerConfig(name="lion").constant("b2") == 0.99
    assert OptimizerConfig(name="lion", b2=0.95).constant("b2") == 0.95
