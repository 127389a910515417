"""Tests of the tool format: calls, contexts and splits."""

import re

from sdft_jax.studies.lab.real import tools


def test_a_call_has_the_input_of_its_request():
    for row in tools.train() + tools.test():
        tool, value = re.fullmatch(r"The call is \*\*(\w+)\((.+)\)\*\*\.", row["answer"]).groups()
        assert tool in tools.TOOLS
        assert value in row["prompt"]
        assert row["demonstration"] == row["answer"]


def test_the_context_has_three_other_calls_of_the_tool():
    for row in tools.train() + tools.test():
        tool = row["answer"].split("**")[1].split("(")[0]
        assert row["context"].count(f"The call is **{tool}(") == 3
        assert row["answer"] not in row["context"]
        assert row["prompt"] not in row["context"]


def test_inputs_and_phrasings_that_are_evaluated_are_not_trained():
    trained = {row["prompt"] for row in tools.train()}
    calls = {row["answer"] for row in tools.train()}
    for row in tools.test():
        assert row["prompt"] not in trained
        assert row["answer"] not in calls
    new = [row["prompt"] for row in tools.test() if row["skill"] == "new phrasing"]
    for _, (phrasing,), _ in tools.TOOLS.values():
        start = phrasing.partition("{}")[0]
        assert any(prompt.startswith(start) for prompt in new)
        assert not any(row["prompt"].startswith(start) for row in tools.train())


def test_score_reads_the_first_line():
    row = {"answer": "The call is **tunebox(jazz)**."}
    assert tools.score(" The call is **tunebox(jazz)**\n", row)
    assert tools.score("The call is **tunebox(jazz)**.\n\nIn this example", row)
    assert not tools.score("The call is **tunebox(rock)**.", row)
    assert not tools.score("The call is **tunebox(jazz)**. It plays jazz.", row)
