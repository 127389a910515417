"""Questions on articles through a real server: prompts, verification, rows, outages."""

import json

import pytest

from endpoints import Response, serve
from sdft_jax.config import load_config
from sdft_jax.errors import SdftError
from sdft_jax.tasks.articles import Article
from sdft_jax.tasks.knowledge import PROMPTS, prepare, problem_of, read_questions

TEXT = "On 2 May 2025, a storm reached Arnvik. It destroyed 1,200 houses.\n\nMayor Ila Voss closed the port."
ARTICLES = [Article("Storm of Arnvik", TEXT, "storm.md"), Article("Fire", "Belm burnt for 3 days.", "f.txt")]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def direct(question, paraphrase, answer, sentence):
    return {"question": question, "paraphrase": paraphrase, "answer": answer, "sentence": sentence}


HOUSES = direct(
    "How many houses did the storm at Arnvik destroy?",
    "What was the number of houses lost at Arnvik?",
    "1,200",
    "It destroyed 1200 houses.",
)
MAYOR = direct(
    "Who closed the harbour of Arnvik?", "Whose order shut Arnvik's port?", "Ila Voss", "Ila Voss did."
)
DAYS = direct("How long did Belm burn?", "For how many days was Belm on fire?", "3 days", "For three days.")
INDIRECT = {
    "question": "Did the storm or the fire come with a closed port?",
    "answer": "storm",
    "sentence": "The storm.",
}
OOD = {
    "question": "Which town unloaded no ships in May 2025?",
    "answer": "Arnvik",
    "sentence": "Arnvik.",
}


def respond(messages):
    """Reply as a model that writes one good and one bad question on each passage."""
    text = messages[0]["content"]
    if "indirect questions" in text:
        return json.dumps([OOD, INDIRECT] if "Arnvik" in text else [OOD])
    return json.dumps([HOUSES, MAYOR]) if "Arnvik" in text else f"```json\n{json.dumps([DAYS])}\n```"


def config_of(endpoint, cache, *more):
    return load_config(None, [*endpoint.settings(cache), *more])


def test_rows_of_articles(tmp_path):
    with serve(respond) as endpoint:
        config = config_of(endpoint, tmp_path / "r", "knowledge.direct=2", "knowledge.ood=1")
        knowledge = prepare(ARTICLES, config)
        prompts = [body["messages"][0]["content"] for body in endpoint.bodies]
        assert prepare(ARTICLES, config) == knowledge
        assert len(endpoint.bodies) == len(prompts) == 4, "the replies are stored"
    storm = f"Storm of Arnvik\n\n{TEXT}"
    assert sum(f"<passage>\n{TEXT}\n</passage>" in prompt for prompt in prompts) == 2
    assert sum("Write 2 questions" in prompt for prompt in prompts) == 2
    assert sum("Write 1 indirect questions" in prompt for prompt in prompts) == 2
    assert [row["prompt"][0]["content"] for row in knowledge.train] == [
        one["question"] for one in (HOUSES, MAYOR, DAYS)
    ]
    assert knowledge.train[0] == {
        "prompt": [{"role": "user", "content": HOUSES["question"]}],
        "demonstration": "It destroyed 1200 houses.",
        "context": f"{storm}\n\nQuestion: {HOUSES['question']}\nAnswer: It destroyed 1200 houses.",
        "answer": "1,200",
        "skill": "direct",
        "article": "Storm of Arnvik",
    }
    assert knowledge.test[0] == {
        "prompt": [{"role": "user", "content": HOUSES["paraphrase"]}],
        "context": storm,
        "answer": "1,200",
        "skill": "direct",
        "article": "Storm of Arnvik",
    }
    assert [(row["skill"], row["answer"]) for row in knowledge.test[3:]] == [("ood", "Arnvik")]
    assert knowledge.texts == [
        {"text": storm, "title": "Storm of Arnvik"},
        {"text": "Fire\n\nBelm burnt for 3 days.", "title": "Fire"},
    ]
    assert knowledge.refused == {
        ("ood", "it has been asked before"): 1,
        ("ood", "the question contains the answer"): 1,
    }
    assert knowledge.failures == []


def test_long_articles_are_asked_by_passage(tmp_path):
    with serve(respond) as endpoint:
        more = ("knowledge.words=12", "knowledge.ood=0", "knowledge.direct_prompt=$title | $passage | $count")
        prepare(ARTICLES[:1], config_of(endpoint, tmp_path / "r", *more))
        prompts = sorted(body["messages"][0]["content"] for body in endpoint.bodies)
    first, second = TEXT.split("\n\n")
    assert prompts == [f"Storm of Arnvik | {second} | 10", f"Storm of Arnvik | {first} | 10"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"answer": "the"}, "the answer has no words"),
        ({"paraphrase": "Were 1200 houses lost?"}, "the question contains the answer"),
        ({"sentence": "It destroyed many houses."}, "the sentence does not contain the answer"),
        ({"question": "What does the passage say of houses?"}, "it mentions the passage"),
        ({"question": "According to this article, how many?"}, "it mentions the passage"),
        ({"sentence": "The text says 1,200."}, "it mentions the passage"),
        ({"paraphrase": HOUSES["question"].upper()}, "the paraphrase is the question"),
        ({"answer": "1,300", "sentence": "It was 1,300."}, "the answer is not in the passage"),
        ({"answer": "200", "sentence": "It was 200."}, "the answer is not in the passage"),
    ],
)
def test_questions_are_verified(changes, problem):
    assert problem_of(HOUSES | changes, TEXT) == problem


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Here are questions.",
        "{}",
        "[]",
        "[1]",
        json.dumps([OOD]),
        json.dumps([HOUSES | {"answer": " "}]),
        json.dumps([HOUSES | {"sentence": "1200 \ud83c"}]),  # half of a surrogate pair
        "[" * 9999,
    ],
)
def test_replies_in_another_form(reply):
    with pytest.raises(ValueError, match="JSON list of objects with the texts question, paraphrase, answer"):
        read_questions(reply, "direct")


def test_endpoint_that_answers_nonsense_is_counted_by_passage(tmp_path):
    def half(messages):
        return respond(messages) if "Belm" not in messages[0]["content"] else "I cannot."

    with serve(half) as endpoint:
        knowledge = prepare(ARTICLES, config_of(endpoint, tmp_path / "r"))
        assert len(knowledge.train) == 2
        assert [failure.partition(" (it is not a JSON list")[0] for failure in knowledge.failures] == [
            "f.txt, passage 1, direct questions",
            "f.txt, passage 1, ood questions",
        ]
        endpoint.respond = lambda messages: "I cannot."
        with pytest.raises(SdftError, match=r"no question is left to train \(.*: use another judge\.model"):
            prepare(ARTICLES, config_of(endpoint, tmp_path / "other"))


def test_endpoint_that_goes_down_goes_on_later(tmp_path):
    with serve(respond) as endpoint:
        config = config_of(endpoint, tmp_path / "r", "judge.concurrency=1")
        endpoint.respond = lambda messages: (
            respond(messages) if "Arnvik" in messages[0]["content"] else Response(503)
        )
        problem = r"1 of 2 requests for direct questions got no reply .*: the others are stored, and the same"
        with pytest.raises(SdftError, match=problem):
            prepare(ARTICLES, config)
        asked, endpoint.respond = len(endpoint.bodies), respond
        assert len(prepare(ARTICLES, config).train) == 3
        assert len(endpoint.bodies) == asked + 3, "all requests but the first"


def test_prompts_have_their_placeholders():
    for prompts in PROMPTS.values():
        for text in prompts.values():
            assert [text.count(f"${name}") for name in ("title", "passage")] == [1, 1]
            assert text.count("$count") == 2
