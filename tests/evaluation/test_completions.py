"""The completions of rows: the same for every batch size, order and bucket."""

import dataclasses

import numpy as np
import pytest

from runs import config_of
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import completions
from sdft_jax.evaluation.completions import complete, greedy_role, requested_roles, sampled_role

pytestmark = pytest.mark.usefixtures("shared_compilations")


@pytest.fixture
def uneven(setting):
    """Return the setting with the prompt of one row made longer than the others by repeating its start."""
    speaker, rows, config = setting
    first, *others = rows.encoded
    longer = dataclasses.replace(first, prompt=np.concatenate([first.prompt[:2], first.prompt]))
    return speaker, dataclasses.replace(rows, encoded=(*others[:2], longer, *others[2:])), config


def changed(config, **sections):
    """Return a configuration with other keys in some sections."""
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **keys) for name, keys in sections.items()},
    )


def by_key(batches):
    return {(x.index, x.sample): x for batch in batches for x in batch}


def test_samples_are_the_same_for_any_batch_and_resumption(uneven):
    """Batches of 4 with one width, and of 2 with two widths, some of whose samples were made before."""
    speaker, rows, config = uneven
    role = sampled_role(config, 2, seed=1)
    whole = by_key(complete(speaker, rows, config, role))
    assert sorted(whole) == [(index, sample) for index in range(6) for sample in range(2)]
    assert len({x.text for x in whole.values()}) > 6, "the samples of a row differ"
    length = len(rows.encoded[0].prompt)
    other = changed(config, eval={"batch_size": 2}, data={"prompt_buckets": (length,)})
    done = {(0, 0), (3, 1), (5, 0)}
    parts = list(complete(speaker, rows, other, role, done=done))
    assert [len(part) for part in parts] == [2, 2, 2, 2, 1]
    assert by_key(parts) == {key: x for key, x in whole.items() if key not in done}


def test_batches_have_the_width_of_their_rows(uneven, monkeypatch):
    """The only row over the bucket is in the first batch, and has a bucket of its own."""
    speaker, rows, config = uneven
    widths = []
    generate = completions.generate

    def recorded(model, params, prompt, *rest):
        widths.append(prompt.tokens.shape[1])
        return generate(model, params, prompt, *rest)

    monkeypatch.setattr(completions, "generate", recorded)
    length = len(rows.encoded[0].prompt)
    one = by_key(complete(speaker, rows, config, greedy_role(config)))
    assert set(widths) == {-(-(length + 2) // 8) * 8}
    widths.clear()
    other = changed(config, eval={"batch_size": 1}, data={"prompt_buckets": (length,)})
    parts = list(complete(speaker, rows, other, greedy_role(config)))
    assert widths == [-(-(length + 2) // 8) * 8, *[length] * 5]
    assert [part[0].index for part in parts] == [2, 0, 1, 3, 4, 5]
    assert by_key(parts) == one


def test_a_completion_without_a_stop_token_is_truncated(setting):
    speaker, rows, config = setting
    answers = by_key(complete(speaker, rows, config, greedy_role(config))).values()
    assert all(x.truncated == (x.length == 5) for x in answers)
    every = dataclasses.replace(speaker, eos_ids=tuple(range(speaker.stop.known)))
    answers = by_key(complete(every, rows, config, greedy_role(config))).values()
    assert [(x.length, x.truncated) for x in answers] == [(1, False)] * 6


def test_roles_follow_the_settings():
    config = config_of("m", "o", "eval.samples=4", "eval.temperature=0.7", "sampling.top_p=0.9")
    student, teacher, sampled = requested_roles(config)
    assert (student.name, student.teacher, student.samples, student.sampling.temperature) == (
        *("student", False, 1),
        0.0,
    )
    assert (teacher.name, teacher.teacher, teacher.sampling) == ("teacher", True, student.sampling)
    assert (sampled.sampling.temperature, sampled.sampling.top_p, sampled.samples) == (0.7, 0.9, 4)
    assert sampled.sampling.max_new_tokens == student.sampling.max_new_tokens == 12
    assert [role.name for role in requested_roles(config_of("m", "o", "eval.teacher=false"))] == ["student"]
    with pytest.raises(SdftError, match=r"^4 samples of a row at temperature 0 are all equal: set eval"):
        requested_roles(config_of("m", "o", "eval.samples=4", "eval.temperature=0"))
