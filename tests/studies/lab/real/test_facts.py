"""Tests of the facts: every question is answered by its article, and none is a prompt of the training."""

from sdft_jax.studies.lab.real import facts


def test_every_answer_is_in_the_context():
    for row in facts.train() + facts.test():
        assert row["answer"] in row["context"]
        assert row["context"].removeprefix("Text: ") in facts.articles()


def test_demonstrations_are_right():
    for row in facts.train():
        assert facts.score(row["demonstration"], row), row


def test_evaluated_prompts_are_not_trained():
    trained = {row["prompt"] for row in facts.train()}
    evaluated = [row["prompt"] for row in facts.test()]
    assert len(set(evaluated)) == len(evaluated) == 36
    assert not trained & set(evaluated)


def test_the_facts_of_towns_differ():
    """An answer about another town is wrong."""
    for name in facts.TOWNS[0]:
        assert len({town[name] for town in facts.TOWNS}) == len(facts.TOWNS)


def test_score_requires_the_answer_as_words():
    row = {"answer": "Tarn"}
    assert facts.score("It is the tarn.", row)
    assert not facts.score("A tarnished spoon.", row)
