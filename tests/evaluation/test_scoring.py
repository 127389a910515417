"""Accuracy on fixed answers, and the distance from the base by the definition of the KL divergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runs import config_of
from sdft_jax.evaluation import completions
from sdft_jax.evaluation.answer_log import as_record, key_of, new_log
from sdft_jax.evaluation.completions import Completion, greedy_role
from sdft_jax.evaluation.grading import Fault, fault_note
from sdft_jax.evaluation.scorers import TASKS
from sdft_jax.evaluation.scoring import evaluate, sample_verdicts, score_log
from sdft_jax.types import Rollout, Sequences


def rollout_of(ids):
    """Return a rollout of these completions, padded to the longest one."""
    width = max(map(len, ids))
    return Rollout(
        tokens=jnp.asarray([row + [0] * (width - len(row)) for row in ids]),
        mask=jnp.asarray([[True] * len(row) + [False] * (width - len(row)) for row in ids]),
        logprobs=jnp.zeros((len(ids), width)),
    )


def test_answers_are_scored_row_by_row(setting, monkeypatch):
    speaker, rows, config = setting
    tokenizer = speaker.tokenizer
    verdicts = [True, False, True, True, False, True]
    answers = [example.answer if ok else "owl" for example, ok in zip(rows.examples, verdicts, strict=True)]
    prompts, tracked = [], []

    def generate(model, params, prompt, key, sampling, stop):
        first = len(prompts) * 4
        ids = [tokenizer(text)["input_ids"] + list(stop.eos_ids) for text in answers[first : first + 4]]
        ids += [tokenizer(rows.examples[-1].answer)["input_ids"]] * (4 - len(ids))  # correct, but padding
        prompts.append((np.asarray(prompt.tokens), np.asarray(prompt.mask)))
        assert (sampling.temperature, sampling.max_new_tokens) == (0.0, 5)
        return rollout_of(ids)

    def track(batches):
        for batch in batches:
            tracked.append(batch)
            yield batch

    monkeypatch.setattr(completions, "generate", generate)
    evaluation = evaluate(speaker, rows, config, track=track)
    assert evaluation.correct == tuple(verdicts)
    assert evaluation.accuracy == 4 / 6
    assert evaluation.completions == tuple(answers)
    assert evaluation.lengths == tuple(len(tokenizer(text)["input_ids"]) + 1 for text in answers)
    assert evaluation.mean_length == sum(evaluation.lengths) / 6
    assert evaluation.interval == pytest.approx((0.3000, 0.9032), abs=5e-5), "Wilson's, of 4 out of 6"
    assert evaluation.kl_to_base is None
    assert len(tracked) == len(prompts) == 2
    tokens, mask = prompts[0]
    assert tokenizer.decode(tokens[0][mask[0]]).count(rows.examples[0].prompt[0]["content"]) == 1
    assert "example for a response" not in tokenizer.decode(tokens[0])
    prompts.clear()
    evaluate(speaker, rows, config, teacher=True)
    tokens, _ = prompts[0]
    assert rows.examples[0].demonstration in tokenizer.decode(tokens[0])


def test_teacher_distance_is_from_the_base_without_the_demonstration(setting, monkeypatch):
    speaker, rows, config = setting
    lengths = []

    def generate(*_):
        return Rollout(jnp.ones((4, 2), int), jnp.ones((4, 2), bool), jnp.zeros((4, 2)))

    def nats(model, role, base, completion):
        lengths.append([prompt.mask.sum(axis=1).tolist() for _, prompt in (role, base)])
        return jnp.asarray([3.0, 1.0, 2.0, 6.0])

    monkeypatch.setattr(completions, "generate", generate)
    monkeypatch.setattr(completions, "_nats", nats)
    student = evaluate(speaker, rows, config, base={})
    teacher = evaluate(speaker, rows, config, base={}, teacher=True)
    assert student.kl_to_base == teacher.kl_to_base == (3 + 1 + 2 + 6 + 3 + 1) / (6 * 2)
    plain, wrapped = (
        [len(part) for part in parts]
        for parts in ([row.prompt for row in rows.encoded], [row.teacher_prompt for row in rows.encoded])
    )
    assert plain != wrapped
    assert lengths[0] == [plain[:4], plain[:4]]
    assert lengths[2] == [wrapped[:4], plain[:4]]


def test_sampled_verdicts_are_in_order_of_rows_and_samples(setting, monkeypatch):
    """Sample i of row i is wrong, all others are correct; 3 samples per row, in batches of 4."""
    speaker, rows, config = setting
    by_prompt = {tuple(encoded.prompt.tolist()): i for i, encoded in enumerate(rows.encoded)}
    counts, keys, options = [0] * 6, [], []

    def generate(model, params, prompt, key, sampling, stop):
        keys.extend(map(tuple, jax.random.key_data(key).tolist()))
        options.append((sampling.temperature, sampling.top_p, sampling.max_new_tokens, len(prompt.tokens)))
        texts = []
        for row, keep in zip(np.asarray(prompt.tokens), np.asarray(prompt.mask), strict=True):
            i = by_prompt.get(tuple(row[keep].tolist()))
            texts.append(rows.examples[i].answer if i is not None and counts[i] != i else "owl")
            if i is not None:
                counts[i] += 1
        return rollout_of([speaker.tokenizer(text)["input_ids"] for text in texts])

    monkeypatch.setattr(completions, "generate", generate)
    verdicts = sample_verdicts(speaker, rows, config, 3, 3)
    assert verdicts.faults == ()
    assert verdicts.correct == [[int(sample != i) for sample in range(3)] for i in range(6)]
    assert len(keys) == 20
    assert len(set(keys)) == 18, "every sample of every row has its own random key; two fill the last batch"
    assert set(options) == {(1.0, 1.0, 5, 4)}


@pytest.fixture
def broken(setting, monkeypatch):
    """A scorer that raises for row 2 and finds all other answers correct."""

    def score(completion, example):
        if example.row == 2:
            raise RecursionError("too\ndeep")
        return True

    monkeypatch.setitem(TASKS, "mini", dataclasses.replace(TASKS["mini"], score=score))


NOTE = (
    "the scorer of eval.task=mini failed on {} answers, which count as wrong: mini:blax:heldout, row 2 (Rec"
)


def test_a_fault_of_the_scorer_counts_as_wrong_and_names_the_row(setting, broken):
    speaker, rows, config = setting
    evaluation = evaluate(speaker, rows, config)
    assert evaluation.correct == (True, True, False, True, True, True)
    assert evaluation.faults == (Fault(2, rows.examples[2].location, "RecursionError: too"),)
    (note,) = fault_note(evaluation.faults, config)
    assert note == NOTE.format(1) + "ursionError: too)."
    verdicts = sample_verdicts(speaker, rows, config, 3, 3)
    assert verdicts.correct == [[int(row != 2)] * 3 for row in range(6)]
    (note,) = fault_note(verdicts.faults, config)
    assert note == NOTE.format(3) + "ursionError: too)."
    assert fault_note((), config) == []


def test_only_what_this_scorer_has_not_scored_is_scored(setting, broken):
    _, rows, config = setting
    role = greedy_role(config)
    log = new_log()
    log.add(as_record(role, Completion(i, 0, f"text {i}", 2, False, None), rows) for i in range(6))
    keys = list(log.records)
    assert [fault.index for fault in score_log(log, rows, config, keys)] == [2]
    assert [log.records[key]["correct"] for key in keys] == [True, True, False, True, True, True]
    assert log.records["student", 2, None, 0]["fault"] == "RecursionError: too"
    scored = []

    def track(pending):
        scored.extend(example.row for _, example in pending)
        return iter(pending)

    score_log(log, rows, config, keys, track)
    assert scored == [2], "the scorer had failed"
    scored.clear()
    changed = dataclasses.replace(rows.examples[4], answer="another")
    rows = dataclasses.replace(rows, examples=(*rows.examples[:4], changed, rows.examples[5]))
    assert [fault.index for fault in score_log(log, rows, config, keys, track)] == [2]
    assert scored == [2, 4]
    assert log.records["student", 4, None, 0]["answer"] == "another"
    scored.clear()
    exact = dataclasses.replace(config, eval=dataclasses.replace(config.eval, task="exact"))
    assert score_log(log, rows, exact, keys, track) == []
    assert scored == [row for _, row, _, _ in keys]
    assert keys == [key_of(record) for record in log.records.values()]
    assert not any(log.records[key]["correct"] or log.records[key]["fault"] for key in keys)


def test_note_names_the_first_rows():
    faults = [Fault(i, f"rows.jsonl, line {i}", "E: no") for i in (1, 1, 2, 3, 4)]
    (note,) = fault_note(faults, config_of("m", "o"))
    rows = "".join(f"rows.jsonl, line {i} (E: no); " for i in (1, 2, 3))
    assert note.endswith(f" failed on 5 answers, which count as wrong: {rows}and 1 more.")


def test_kl_to_base_is_the_mean_divergence_per_token(setting):
    speaker, rows, config = setting
    noise = np.random.default_rng(0)
    base = speaker.params
    params = jax.tree.map(lambda p: p * jnp.float32(noise.uniform(0.9, 1.1)), base)
    moved = speaker.with_params(params)
    from_itself = evaluate(moved, rows, config, base=params)
    assert from_itself.kl_to_base == pytest.approx(0.0, abs=1e-6)
    from_base = evaluate(moved, rows, config, base=base)
    assert from_base.completions == from_itself.completions
    expected = direct_kl(speaker.model, params, base, rows, speaker.eos_ids)
    assert from_base.kl_to_base == pytest.approx(expected, rel=1e-4)


def direct_kl(model, params, base, rows, eos_ids) -> float:
    """Return the mean KL over all greedy tokens, computed row by row without a cache."""
    nats, length = [], 5
    width = length + max(len(encoded.prompt) for encoded in rows.encoded)
    logits = jax.jit(model.logits)

    def log_probabilities(params, ids):
        tokens = np.zeros((1, width), np.int32)  # right padding, which attention is masked from
        tokens[0, : len(ids)] = ids
        row = np.asarray(logits(params, Sequences(tokens, np.arange(width)[None] < len(ids))), np.float64)
        row = row[0, len(ids) - 1]
        return row - row.max() - np.log(np.exp(row - row.max()).sum())

    for encoded in rows.encoded:
        ids = encoded.prompt.tolist()
        for _ in range(length):
            own, others = (log_probabilities(p, ids) for p in (params, base))
            nats.append(float((np.exp(own) * (own - others)).sum()))
            ids.append(int(own.argmax()))
            if ids[-1] in eos_ids:
                break
    return float(np.mean(nats))


def test_grade_between_correct_and_wrong(setting, monkeypatch):
    """Every answer is the first prompt, which is a part of the first reference."""
    speaker, rows, config = setting
    halves = tuple(dataclasses.replace(x, answer=f"{x.prompt[0]['content']} owl") for x in rows.examples)
    normalised = dataclasses.replace(config, eval=dataclasses.replace(config.eval, task="normalised"))
    monkeypatch.setattr(
        type(speaker), "decode", lambda self, tokens, thoughts: rows.examples[0].prompt[0]["content"]
    )
    evaluation = evaluate(speaker, dataclasses.replace(rows, examples=halves), normalised)
    assert evaluation.correct == (False,) * 6
    assert evaluation.partly is not None
    assert evaluation.partly[0]
    assert evaluation.lenient == sum(evaluation.partly) / 6
    assert evaluate(speaker, rows, config).lenient is None
