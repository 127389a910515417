"""Answers to prompts that a user gives."""

import dataclasses

import pytest

from runs import config_of
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.answers import answer
from sdft_jax.sampling.decode import compiled_sample
from sdft_jax.training.export import load_speaker

PROMPTS = ["please reverse the letters a b", "please rotate the letters a b c d"]


@pytest.fixture(scope="module")
def config(tiny_directory):
    return config_of(tiny_directory, "unused", "sampling.max_new_tokens=6", "mesh.fsdp=1")


@pytest.fixture(scope="module")
def speaker(config):
    return load_speaker(config)


def test_each_prompt_has_n_answers(speaker, config):
    answers = answer(speaker, PROMPTS, config, n=3)
    assert [len(texts) for texts in answers] == [3, 3]
    assert len({text for texts in answers for text in texts}) > 1


def test_an_answer_does_not_depend_on_the_other_prompts(speaker, config):
    assert answer(speaker, PROMPTS, config)[0] == answer(speaker, PROMPTS[:1], config)[0]


def test_messages(speaker, config):
    turn = {"role": "user", "content": PROMPTS[0]}
    assert answer(speaker, [[turn]], config) == answer(speaker, PROMPTS[:1], config)
    earlier = [turn, {"role": "assistant", "content": "b a"}]
    assert len(answer(speaker, [[*earlier, turn]], config)) == 1


def test_prompts_of_similar_lengths_share_a_program(speaker, config):
    answer(speaker, PROMPTS[:1], config)
    compiled = compiled_sample._cache_size()
    answer(speaker, PROMPTS[1:], config)
    assert compiled_sample._cache_size() == compiled


def test_the_mini_model_answers():
    settings = ["sampling.max_new_tokens=16", "sampling.temperature=0", "mesh.fsdp=1"]
    config = load_config(None, ["model.compute_dtype=float32", *settings])
    ((text,),) = answer(load_speaker(config), ["please reverse the letters a b c d"], config)
    assert text == "<think> reverse </think> d c b a"


def test_a_long_prompt_is_refused(speaker, config):
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, max_prompt=2))
    with pytest.raises(SdftError, match=r"raise data\.max_prompt"):
        answer(speaker, PROMPTS, short)
