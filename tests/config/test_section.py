"""Sections refuse wrong values in Python as in files: SdftError with one sentence, and no pydantic error."""

import dataclasses

import pytest

from sdft_jax.config import Config
from sdft_jax.config.settings import (
    DataConfig,
    DivergenceConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainConfig,
)
from sdft_jax.errors import SdftError
from sdft_jax.sharding import Rules


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplingConfig(temperature=-1), "sampling.temperature=-1: input should be greater"),
        (lambda: SamplingConfig(temperature=1e-9), "sampling.temperature=1e-09: give 0, or a number"),
        (lambda: SamplingConfig(top_q=1), "sampling.top_q=1: unexpected keyword argument."),
        (lambda: DivergenceConfig(temperature=0), "divergence.temperature=0: input should be greater than 0"),
        (lambda: OptimizerConfig(clip=1e-40), "optimizer.clip=1e-40: give 0, or a number from 1e-30"),
        (lambda: TrainConfig(batch_size=True), "train.batch_size=True: give a number instead of"),
        (lambda: TrainConfig(steps=2**31), "train.steps=2147483648: input should be less than"),
        (lambda: DataConfig(prompt_buckets=[8, True]), "data.prompt_buckets.1=True: give a number instead"),
        (lambda: dataclasses.replace(TrainConfig(), seed=-1), "train.seed=-1: input should be greater than"),
        (lambda: Config(train=3), "train=3: input should be a dictionary or an instance of TrainConfig."),
        (lambda: Rules(batch=3), "sharding.batch.str=3: input should be a valid string (1 more)."),
    ],
)
def test_wrong_value_in_python(make, message):
    with pytest.raises(SdftError) as raised:
        make()
    assert str(raised.value).startswith(message)


def test_section_has_the_signature_and_the_documentation_of_its_fields():
    assert SamplingConfig(8).max_new_tokens == 8
    assert SamplingConfig.__doc__ == "The student's sampling of completions."
    assert repr(SamplingConfig(8)).startswith("SamplingConfig(max_new_tokens=8, temperature=1.0")
