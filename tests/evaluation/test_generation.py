"""Generation in rounds, compared with one call of the sampler."""

import dataclasses

import numpy as np
import pytest

from sdft_jax.config.settings import SamplingConfig
from sdft_jax.evaluation import generation
from sdft_jax.evaluation.generation import Generation, complete
from sdft_jax.mini.tokenizer import build_tokenizer
from sdft_jax.models.speaker import Speaker
from sdft_jax.sampling import generate, make_key, row_keys
from sdft_jax.sharding import Rules, Sharding, make_mesh
from sdft_jax.types import Sequences, StopTokens
from tiny import VOCABULARY, tiny_model

EOS = 9
GREEDY = Generation(SamplingConfig(max_new_tokens=10, temperature=0.0), (), (EOS,))
PROMPTS = [
    tuple(np.random.default_rng(seed).integers(10, VOCABULARY, size=size).tolist())
    for seed, size in enumerate((3, 7, 20, 5, 11))
]


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch):
    monkeypatch.setattr(generation, "ROUND", 4)


@pytest.fixture(scope="module")
def speaker():
    return Speaker(*tiny_model(), build_tokenizer(), (EOS,))


@pytest.fixture(scope="module")
def whole(speaker):
    """The greedy completions of one call."""
    tokens, mask = np.zeros((2, len(PROMPTS), 32), np.int32)
    for row, prompt in enumerate(PROMPTS):
        tokens[row, 32 - len(prompt) :], mask[row, 32 - len(prompt) :] = prompt, 1
    rollout = generate(
        speaker.model,
        speaker.params,
        Sequences(tokens, mask.astype(bool)),
        make_key(0),
        GREEDY.sampling,
        StopTokens((EOS,), 0),
    )
    return [
        tuple(row[keep].tolist())
        for row, keep in zip(np.asarray(rollout.tokens), np.asarray(rollout.mask), strict=True)
    ]


def completions(speaker, wanted, batch_size=4, prompts=PROMPTS, numbers=None):
    keys = (
        row_keys(make_key(0), len(prompts))
        if numbers is None
        else row_keys(make_key(0), 9)[np.asarray(numbers)]
    )
    found = dict(complete(speaker, prompts, keys, wanted, batch_size))
    assert sorted(found) == list(range(len(prompts)))
    return [found[index] for index in range(len(prompts))]


def test_rounds_give_the_tokens_of_one_call(speaker, whole):
    assert completions(speaker, GREEDY) == whole
    assert any(len(tokens) > 4 for tokens in whole)


def test_ids_that_the_tokenizer_does_not_have_are_never_sampled(whole):
    """A model's embedding may be padded beyond the ids of its tokenizer."""
    speaker = Speaker(*tiny_model(), build_tokenizer(("one", "two")), (EOS,))
    known = speaker.stop.known
    assert EOS < known < VOCABULARY
    assert any(token >= known for tokens in whole for token in tokens)
    assert all(token < known for tokens in completions(speaker, GREEDY) for token in tokens)


def test_eight_devices_give_the_same_tokens(whole):
    sharded, params = tiny_model(Sharding(make_mesh(2, 2, 2), Rules()))
    assert completions(Speaker(sharded, params, build_tokenizer(), (EOS,)), GREEDY, 8) == whole


def test_a_row_ends_in_the_round_of_its_stop_string(speaker, whole):
    longest = max(range(len(whole)), key=lambda row: len(whole[row]))
    stop = speaker.decode([whole[longest][1]])
    found = completions(speaker, dataclasses.replace(GREEDY, until=(stop,)))
    for tokens, complete_tokens in zip(found, whole, strict=True):
        place = next((i for i, token in enumerate(complete_tokens) if speaker.decode([token]) == stop), 99)
        assert tokens == complete_tokens[: 4 * (place // 4 + 1)]
    assert len(found[longest]) == 4 < len(whole[longest])


def test_a_row_ends_at_its_eos(speaker, whole):
    eos = max(whole, key=len)[5]
    found = completions(speaker, dataclasses.replace(GREEDY, eos_ids=(eos,)))
    for tokens, complete_tokens in zip(found, whole, strict=True):
        length = complete_tokens.index(eos) + 1 if eos in complete_tokens else 10
        assert tokens == complete_tokens[:length]


def test_a_sample_does_not_depend_on_the_other_rows(speaker):
    sampled = dataclasses.replace(GREEDY, sampling=SamplingConfig(max_new_tokens=10, temperature=1.0))
    together = completions(speaker, sampled)
    alone = completions(speaker, sampled, 1, PROMPTS[3:4], numbers=[3])
    assert alone == together[3:4]
    other = completions(speaker, sampled, 1, PROMPTS[3:4], numbers=[4])
    assert other != alone
    assert len({tuple(tokens[:4]) for tokens in together} | {tuple(tokens[4:8]) for tokens in together}) > 5
