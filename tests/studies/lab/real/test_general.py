"""Tests of the prior suite."""

from sdft_jax.studies.lab.real import facts, general, rules, tools


def test_no_question_is_a_prompt_of_a_task():
    questions = {row["prompt"] for row in general.rows()}
    assert len(questions) >= 40
    for task in (facts, rules, tools):
        rows = task.train() + task.test()
        assert not questions & {row["prompt"] for row in rows}
        assert not [prompt for prompt in questions for row in rows if prompt in row["context"]]


def test_score_accepts_every_answer_as_words():
    row = {"answer": "4, four"}
    assert general.score("It is Four.", row)
    assert general.score("The answer is **4**.", row)
    assert not general.score("14", row)
    assert not general.score("fourteen", row)
