"""Grades by a scorer and by a judge, and what is said about answers without a grade."""

import jax
import pytest

from endpoints import Response, serve
from sdft_jax.config import load_config
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation import grading
from sdft_jax.evaluation.grading import (
    Fault,
    check_scorer,
    fault_note,
    grade_all,
    grade_together,
    scorer_name,
)
from sdft_jax.evaluation.scorers.grade import Grade

ROWS = [Example("q", "", answer, row, "rows.jsonl") for row, answer in enumerate(["blue whale", "7", "owl"])]
ANSWERS = ["The Blue Whale!", "Seven?", "a blue cat"]


def config_of(*overrides):
    return load_config(None, list(overrides))


def test_grades_by_scorers():
    C, P, W = Grade.CORRECT, Grade.PARTLY, Grade.WRONG
    assert grade_all(ANSWERS, ROWS, config_of("eval.task=normalised")) == [C, C, W]
    assert grade_all(ANSWERS, ROWS, config_of("eval.task=exact")) == [W, W, W]
    assert grade_all(["a whale"], ROWS[:1], config_of("eval.task=normalised")) == [P]


def test_without_an_endpoint_the_scorer_is_deterministic_and_named():
    config = config_of("eval.task=judge")
    assert grade_all(ANSWERS, ROWS, config) == grade_all(ANSWERS, ROWS, config_of("eval.task=normalised"))
    assert scorer_name(config) == "normalised, not by a judge, since judge.url is not set"
    assert scorer_name(config_of("eval.task=choice")) == "choice"


def test_grades_by_a_judge_and_their_faults(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def respond(messages):
        if "<answer>\nSeven?" in messages[0]["content"]:
            return Response(500)
        return "INCORRECT" if "cat" in messages[0]["content"] else "CORRECT"

    with serve(respond) as endpoint:
        config = config_of("eval.task=judge", *endpoint.settings(tmp_path / "r", "judge.concurrency=3"))
        first, fault, last = grade_all(ANSWERS, ROWS, config)
    assert scorer_name(config) == "grader with the prompt facts-v1"
    assert (first, last) == (Grade.CORRECT, Grade.WRONG)
    assert (fault.index, fault.place) == (1, "rows.jsonl, line 2")
    (note,) = fault_note([fault], config)
    assert note.startswith(f"the judge at {endpoint.url} gave no grade for 1 answers, which count as wrong: ")
    assert "the same command asks for the missing ones only." in note
    assert isinstance(fault, Fault)


def test_judge_is_checked_only_if_it_is_used():
    wrong = ("judge.url=http://127.0.0.1:9/v1", "judge.model=m", "judge.prompt=nothing")
    check_scorer(config_of(*wrong))
    with pytest.raises(SdftError, match=r"judge\.prompt"):
        check_scorer(config_of("eval.task=judge", *wrong))


@pytest.fixture
def as_process(monkeypatch):
    """A function that makes this process one of two; the broadcast passes on what process 0 gave to it."""
    sent = []

    def broadcast(codes):
        if jax.process_index() == 0:
            sent[:] = [codes]
        return sent[0]

    def become(index):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(jax, "process_index", lambda: index)
        monkeypatch.setattr(grading.multihost_utils, "broadcast_one_to_all", broadcast)

    return become


def test_processes_share_the_grades_of_the_first(as_process, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    grades = {"The Blue Whale!": "CORRECT", "Seven?": "hm", "a blue cat": "PARTIALLY"}
    asked = []
    with serve(lambda messages: next(grades[text] for text in grades if text in str(messages))) as endpoint:
        config = config_of("eval.task=judge", *endpoint.settings(tmp_path / "r"))
        for index in (0, 1):
            as_process(index)
            first, fault, last = grade_together(ANSWERS, ROWS, config)
            assert (first, last) == (Grade.CORRECT, Grade.PARTLY)
            assert (fault.index, fault.place) == (1, "rows.jsonl, line 2")
            asked.append(len(endpoint.bodies))
    assert asked[0] == asked[1], "process 1 asks for nothing"
    assert fault.reason == "see process 0"


def test_mistake_reaches_all_processes(as_process):
    config = config_of(
        "eval.task=judge", "judge.url=http://127.0.0.1:9/v1", "judge.model=m", "judge.prompt=no"
    )
    for index, problem in enumerate((r"judge\.prompt: ", "process 0 cannot use the judge: see")):
        as_process(index)
        with pytest.raises(SdftError, match=problem):
            grade_together(ANSWERS, ROWS, config)
