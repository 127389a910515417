"""Tests of the rule: demonstrations follow it, and evaluated prompts are new, also to the context."""

import pytest

from sdft_jax.studies.lab.real import rules


def test_demonstrations_follow_the_rule():
    rows = rules.train()
    assert all(rules.score(row["demonstration"], row) for row in rows)
    assert {row["context"] for row in rows + rules.test()} == {rules.CONTEXT}


def test_evaluated_prompts_are_new():
    trained = {row["prompt"] for row in rules.train()}
    for row in rules.test():
        assert row["prompt"] not in trained
        assert row["prompt"] not in rules.CONTEXT


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("The answer is **Oslo**.", True),
        (" The answer is **the moon**", True),
        ("The answer is Oslo.", False),
        ("The answer is **Oslo**. It is in Norway.", False),
        ("The answer is **Oslo** and **Bergen**.", False),
        ("The answer is ****.", False),
    ],
)
def test_score_reads_the_form_only(completion, right):
    assert rules.score(completion, {}) is right
