"""Accuracy by hand-made answers; the distance from the base by the definition of KL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runs import config_of
from sdft_jax.evaluation import scoring as module
from sdft_jax.evaluation.eval_set import prepare_eval
from sdft_jax.evaluation.scoring import evaluate, sample_verdicts
from sdft_jax.models import load_model
from sdft_jax.models.hf.tokenizer import eos_ids, load_tokenizer
from sdft_jax.types import Rollout


@pytest.fixture(scope="module")
def setting(tiny_directory):
    """Six rows in batches of four: the last batch has two rows that only fill it."""
    config = config_of(
        tiny_directory, "unused", "eval.limit=6", "eval.batch_size=4", "sampling.max_new_tokens=5"
    )
    tokenizer = load_tokenizer(str(tiny_directory))
    eos = eos_ids(tokenizer, tiny_directory)
    rows = prepare_eval(config.eval.path, config, tokenizer, eos, teacher=True)
    model, _ = load_model(tiny_directory)
    return config, tokenizer, eos, rows, model


def test_answers_are_scored_row_by_row(setting, monkeypatch):
    config, tokenizer, eos, rows, model = setting
    right = [True, False, True, True, False, True]
    answers = [example.answer if ok else "owl" for example, ok in zip(rows.examples, right, strict=True)]
    shown = []

    def generate(model, params, tokens, mask, **_):
        first = len(shown) * 4
        ids = [tokenizer(text)["input_ids"] + list(eos) for text in answers[first : first + 4]]
        ids += [tokenizer(rows.examples[-1].answer)["input_ids"]] * (4 - len(ids))  # right, and no row
        width = max(map(len, ids))
        shown.append((np.asarray(tokens), np.asarray(mask)))
        return Rollout(
            tokens=jnp.asarray([row + [0] * (width - len(row)) for row in ids]),
            mask=jnp.asarray([[True] * len(row) + [False] * (width - len(row)) for row in ids]),
            logprobs=jnp.zeros((4, width)),
        )

    monkeypatch.setattr(module, "generate", generate)
    found = evaluate(model, None, rows, tokenizer, eos, config, active=False)
    assert found.correct == tuple(right)
    assert found.accuracy == 4 / 6
    assert found.completions == tuple(answers)
    assert found.lengths == tuple(len(tokenizer(text)["input_ids"]) + 1 for text in answers)
    assert found.mean_length == sum(found.lengths) / 6
    assert found.kl_to_base is None
    tokens, mask = shown[0]
    assert tokenizer.decode(tokens[0][mask[0]]).count(rows.examples[0].prompt[0]["content"]) == 1
    assert "example for a response" not in tokenizer.decode(tokens[0])
    shown.clear()
    evaluate(model, None, rows, tokenizer, eos, config, teacher=True, active=False)
    tokens, _ = shown[0]
    assert rows.examples[0].demonstration in tokenizer.decode(tokens[0])


def test_the_distance_of_a_teacher_is_measured_from_the_base_without_the_demonstration(setting, monkeypatch):
    config, tokenizer, eos, rows, model = setting
    lengths, weights = [], []

    def generate(model, params, tokens, mask, **_):
        return Rollout(jnp.ones((4, 2), int), jnp.ones((4, 2), bool), jnp.zeros((4, 2)))

    def divergence_from(model, params, base, prompt, base_prompt, rollout, weight):
        lengths.append([mask.sum(axis=1).tolist() for _, mask in (prompt, base_prompt)])
        weights.append(weight.tolist())
        return jnp.float32(3.0), rollout.mask.sum()

    monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr(module, "_divergence_from", divergence_from)
    options = dict(base={}, active=False)
    plain = evaluate(model, None, rows, tokenizer, eos, config, **options)
    shown = evaluate(model, None, rows, tokenizer, eos, config, teacher=True, **options)
    assert plain.kl_to_base == shown.kl_to_base == 2 * 3.0 / (2 * 8)
    short, long = (
        [len(part) for part in parts]
        for parts in ([row.prompt for row in rows.encoded], [row.teacher_prompt for row in rows.encoded])
    )
    assert short != long
    assert lengths[0] == [short[:4], short[:4]]
    assert lengths[2] == [long[:4], short[:4]]
    assert weights == [[1, 1, 1, 1], [1, 1, 0, 0]] * 2


def test_sampled_verdicts_are_counted_row_by_row(setting, monkeypatch):
    """Row i answers rightly in all samples but its i-th; three samples a row, in batches of four."""
    config, tokenizer, eos, rows, model = setting
    by_prompt = {tuple(encoded.prompt.tolist()): i for i, encoded in enumerate(rows.encoded)}
    seen, keys, options = [0] * 6, [], []

    def generate(model, params, tokens, mask, *, key, **kwargs):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        options.append((kwargs["temperature"], kwargs["top_p"], kwargs["max_new_tokens"], len(tokens)))
        texts = []
        for row, keep in zip(np.asarray(tokens), np.asarray(mask), strict=True):
            i = by_prompt.get(tuple(row[keep].tolist()))
            texts.append(rows.examples[i].answer if i is not None and seen[i] != i else "owl")
            if i is not None:
                seen[i] += 1
        ids = [tokenizer(text)["input_ids"] for text in texts]
        width = max(map(len, ids))
        return Rollout(
            tokens=jnp.asarray([row + [0] * (width - len(row)) for row in ids]),
            mask=jnp.asarray([[True] * len(row) + [False] * (width - len(row)) for row in ids]),
            logprobs=jnp.zeros((4, width)),
        )

    monkeypatch.setattr(module, "generate", generate)
    key = jax.random.key(3)
    found = sample_verdicts(model, None, rows, tokenizer, eos, config, key, 3)
    assert found == [[int(sample != i) for sample in range(3)] for i in range(6)]
    assert len(set(keys)) == len(keys) == 5, "no two batches share their randomness"
    assert set(options) == {(1.0, 1.0, 5, 4)}


def test_kl_to_base_is_its_definition(setting, tiny_directory):
    config, tokenizer, eos, rows, _ = setting
    model, base = load_model(tiny_directory)
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p * jnp.float32(noise.uniform(0.9, 1.1)), base)
    arguments = (rows, tokenizer, eos, config)
    itself = evaluate(model, params, *arguments, base=params, active=False)
    assert itself.kl_to_base == pytest.approx(0.0, abs=1e-6)
    moved = evaluate(model, params, *arguments, base=base, active=False)
    assert moved.completions == itself.completions
    assert moved.kl_to_base == pytest.approx(direct(model, params, base, rows, eos), rel=1e-4)


def direct(model, params, base, rows, eos) -> float:
    """Mean KL over all greedy tokens, one row after another, without a cache."""
    nats = []
    width = 5 + max(len(encoded.prompt) for encoded in rows.encoded)
    logits = jax.jit(model.logits)

    def log_probabilities(params, ids):
        # Padded on the right, which no token before it can see.
        tokens = np.zeros((1, width), np.int32)
        tokens[0, : len(ids)] = ids
        row = np.asarray(logits(params, tokens, np.arange(width)[None] < len(ids)), np.float64)
        row = row[0, len(ids) - 1]
        return row - row.max() - np.log(np.exp(row - row.max()).sum())

    for encoded in rows.encoded:
        ids = encoded.prompt.tolist()
        for _ in range(5):
            own, others = (log_probabilities(p, ids) for p in (params, base))
            nats.append(float((np.exp(own) * (own - others)).sum()))
            ids.append(int(own.argmax()))
            if ids[-1] in eos:
                break
    return float(np.mean(nats))
