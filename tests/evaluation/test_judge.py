"""Grades by a judge on a real server, and the reading of its verdicts."""

import hashlib
import json

import pytest

from endpoints import serve
from sdft_jax.data.examples import Example
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.endpoint import Failure
from sdft_jax.evaluation.judge import PROMPTS, check_judge, judge_all, prompt_name, read_verdict
from sdft_jax.evaluation.scorers.grade import Grade

pytestmark = pytest.mark.usefixtures("no_proxy")


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def example(answer="Paris", prompt="Capital of France?", row=0):
    return Example(prompt, "", answer, row, "rows.jsonl")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("CORRECT", Grade.CORRECT),
        (" **Correct**.\n", Grade.CORRECT),
        ("PARTIALLY", Grade.PARTLY),
        ("Partially  Correct", Grade.PARTLY),
        ('"INCORRECT"', Grade.WRONG),
    ],
)
def test_verdicts(reply, grade):
    assert read_verdict(reply) is grade


@pytest.mark.parametrize(
    "reply", ["", "not correct", "CORRECT or INCORRECT", "Verdict: CORRECT", "yes", '{"grade": "CORRECT"}']
)
def test_other_words_are_no_verdict(reply):
    with pytest.raises(ValueError, match="it is not one word of CORRECT, PARTIALLY and INCORRECT"):
        read_verdict(reply)


def grade_by_text(messages):
    """Reply as a judge that knows three answers."""
    answer = messages[-1]["content"].partition("<answer>\n")[2].partition("\n</answer>")[0]
    return {"Paris": "CORRECT", "In France": "PARTIALLY", "Rome": "INCORRECT"}.get(answer, "hm")


def test_answers_are_graded(tmp_path):
    cache = tmp_path / "replies.jsonl"
    answers = ["<think>Rome?</think>\nParis", "Rome", "In France", "<think>Paris", "never seen", "Paris"]
    with serve(grade_by_text) as endpoint:
        *grades, odd, again = judge_all(answers, [example()] * 6, endpoint.config(cache))
        prompt = endpoint.bodies[0]["messages"][0]["content"]
        assert len(endpoint.bodies) == 3 + 3, "an answer without text is not sent, an equal one once"
    assert grades == [Grade.CORRECT, Grade.WRONG, Grade.PARTLY, Grade.WRONG]
    assert again is Grade.CORRECT
    assert odd == Failure("it is not one word of CORRECT, PARTIALLY and INCORRECT; the reply is 'hm'")
    assert "<question>\nCapital of France?\n</question>" in prompt
    assert "<reference>\nParis\n</reference>" in prompt
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert sorted(line["reply"] for line in lines) == ["CORRECT", "INCORRECT", "PARTIALLY"]
    assert {line["prompt"] for line in lines} == {"facts-v1"}


def test_grades_depend_on_the_prompt_and_its_version(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Q $question R $reference A $answer")
    with serve(lambda messages: "CORRECT") as endpoint:
        for prompt in ("facts-v1", "medical-v1", f"file:{own}"):
            judge_all(["Paris"], [example(7)], endpoint.config(tmp_path / "r", prompt=prompt))
        own.write_text("Changed. Q $question R $reference A $answer")
        turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "$5?"})
        judge_all(["Paris"], [example(7, turns)], endpoint.config(tmp_path / "r", prompt=f"file:{own}"))
        texts = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert len(texts) == 4
    assert texts[2] == "Q Capital of France? R 7 A Paris"
    assert texts[3] == "Changed. Q system: Be brief.\n\nuser: $5? R 7 A Paris"


def test_prompts_have_names(tmp_path):
    text = "$question $reference $answer"
    (tmp_path / "own.txt").write_text(text)
    names = [prompt_name(one) for one in ("facts-v1", text, f"file:{tmp_path}/own.txt", f"{text}!")]
    assert names[:2] == ["facts-v1", f"own {hashlib.sha256(text.encode()).hexdigest()[:8]}"]
    assert names[2] == names[1] != names[3]
    assert all(text.count("$") == 3 for text in PROMPTS.values())


def test_judge_is_checked_before_the_work(tmp_path):
    with serve(grade_by_text) as endpoint:
        with pytest.raises(SdftError, match=r"judge\.prompt: \$answer is missing: .* facts-v1, medical-v1"):
            check_judge(endpoint.config(tmp_path / "r", prompt="facts-v2"))
        with pytest.raises(SdftError, match=r"set judge\.cache to a file"):
            check_judge(endpoint.config(tmp_path))
        check_judge(endpoint.config(tmp_path / "r"))
        assert endpoint.bodies == []
