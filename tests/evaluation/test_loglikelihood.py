"""Scores of continuations, compared with the log-softmax of whole logits in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.config.settings import LoraConfig
from sdft_jax.evaluation.loglikelihood import Limits, Request, score_continuations
from sdft_jax.mini.tokenizer import build_tokenizer
from sdft_jax.models.speaker import Speaker
from sdft_jax.sharding import Rules, Sharding, make_mesh
from sdft_jax.types import Sequences
from tiny import VOCABULARY, adapted, tiny_model

LIMITS = Limits(max_length=20, batch_size=8, chunk=7)


def speaker_of(model, params):
    return Speaker(model, params, build_tokenizer(), (1,))


def requests(count=10):
    """Random requests, two of which share a row, one is repeated, and one is longer than the limit."""
    rng = np.random.default_rng(0)

    def tokens(low, high):
        return tuple(rng.integers(2, VOCABULARY, size=rng.integers(low, high)).tolist())

    drawn = [Request(tokens(1, 12), tokens(1, 5)) for _ in range(count)]
    first = drawn[0]
    other = Request(first.context, (*first.continuation[:-1], 30))
    shorter = Request(first.context + first.continuation[:-1], (31,))
    return [*drawn, other, shorter, first, Request(tokens(30, 31), tokens(3, 4))]


def expected(model, params, asked):
    """The scores by NumPy, from the logits of every request in a row of its own."""
    rows = [(request.context + request.continuation)[-LIMITS.max_length - 1 :] for request in asked]
    tokens, mask = np.zeros((2, len(rows), LIMITS.max_length), np.int32)
    for place, row in enumerate(rows):
        tokens[place, : len(row) - 1], mask[place, : len(row) - 1] = row[:-1], 1
    logits = np.asarray(jax.jit(model.logits)(params, Sequences(tokens, mask.astype(bool))), np.float64)
    found = []
    for place, (row, request) in enumerate(zip(rows, asked, strict=True)):
        target = np.asarray(request.continuation)
        of_row = logits[place, len(row) - 1 - len(target) : len(row) - 1]
        normalizer = np.log(np.exp(of_row - of_row.max(1, keepdims=True)).sum(1)) + of_row.max(1)
        chosen = of_row[np.arange(len(target)), target]
        found.append(((chosen - normalizer).sum(), bool((of_row.argmax(1) == target).all())))
    return found


@pytest.fixture(scope="module")
def asked_and_expected():
    """Requests, the last of which is greedy, and their scores."""
    single, params = tiny_model()
    context = requests()[1].context
    every = [Request(context, (token,)) for token in range(VOCABULARY)]
    best = int(np.argmax([logprob for logprob, _ in expected(single, params, every)]))
    asked = [*requests(), every[best]]
    return asked, expected(single, params, asked)


def scores_of(model, params, asked):
    scores = dict(score_continuations(speaker_of(model, params), asked, LIMITS))
    assert sorted(scores) == list(range(len(asked)))
    return [scores[index] for index in range(len(asked))]


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_scores_equal_whole_logits(mesh, asked_and_expected):
    asked, wanted = asked_and_expected
    devices = jax.devices()[: np.prod(mesh)]
    scores = scores_of(*tiny_model(Sharding(make_mesh(*mesh, devices=devices), Rules())), asked)
    np.testing.assert_allclose([score.logprob for score in scores], [one for one, _ in wanted], atol=1e-4)
    assert [score.is_greedy for score in scores] == [greedy for _, greedy in wanted]
    assert scores[-1].is_greedy


def test_an_adapted_head_is_scored():
    model, params = tiny_model()
    model, params = adapted(model, params, LoraConfig(rank=4, targets=("q", "head")))
    asked = requests(2)
    scores = scores_of(model, params, asked)
    wanted = [logprob for logprob, _ in expected(model, params, asked)]
    np.testing.assert_allclose([score.logprob for score in scores], wanted, atol=1e-4)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 1, 2)])
def test_of_equal_logits_the_first_is_greedy(mesh):
    """As in `argmax`, also if the mesh splits the vocabulary."""
    model, params = tiny_model(Sharding(make_mesh(*mesh, devices=jax.devices()[: np.prod(mesh)]), Rules()))
    params = {**params, "head": jnp.zeros_like(params["head"])}
    scores = scores_of(model, params, [Request((5, 6), (token,)) for token in (0, 1, 9, 31)])
    assert [score.is_greedy for score in scores] == [True, False, False, False]
    np.testing.assert_allclose([score.logprob for score in scores], -np.log(VOCABULARY), rtol=1e-6)


def test_requests_that_differ_in_the_last_token_share_a_row(monkeypatch):
    shapes = []
    from sdft_jax.evaluation import loglikelihood

    real = loglikelihood._token_scores

    def spy(model, params, sequences, *rest):
        shapes.append(sequences.tokens.shape)
        return real(model, params, sequences, *rest)

    monkeypatch.setattr(loglikelihood, "_token_scores", spy)
    scores_of(*tiny_model(), [Request((5, 6, 7), (token,)) for token in range(4)])
    assert shapes == [(1, 32)]


def test_cut_is_what_the_model_does_not_read():
    request = Request(tuple(range(10)), (90, 91, 92))
    assert request.read(12) == (*range(10), 90, 91)
    assert request.cut(12) == 0
    assert request.read(5) == (7, 8, 9, 90, 91)
    assert request.cut(5) == 7
