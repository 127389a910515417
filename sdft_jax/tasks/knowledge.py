"""Knowledge: articles become questions and answers through an endpoint, as in the paper's knowledge task.

A model writes two kinds of questions on each passage of an article. Direct ones ask for one fact, in two
wordings: one to train, the other to test. Out-of-distribution ones (`ood`) combine or apply facts, and only
test. What a model writes is verified before it becomes a row; what is refused is counted by its reason.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sdft_jax.config import Config
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.endpoint import Failure, Form, ask_all
from sdft_jax.evaluation.scorers.text import normalise
from sdft_jax.files import is_utf8, read_template
from sdft_jax.tasks.articles import Article, split_passages
from sdft_jax.tasks.fields import Row, user_prompt

_STYLE = """\
A reader who has not seen the passage must understand each question: name the event, the place or the person
in it. Do not mention the passage, the article or the text. No question contains its own answer."""

DIRECT = f"""\
Write $count questions with short answers on a passage of the article "$title".

<passage>
$passage
</passage>

Each question asks for exactly one fact that the passage states, and different questions for different facts;
together they cover the whole passage. An answer is a name, a number, a date, a place or a short phrase,
copied from the passage word for word.
{_STYLE}

For each question, also write a paraphrase, which asks for the same fact in clearly different words, and a
sentence, which answers the question completely and contains the answer word for word.
Reply with a JSON list of $count objects, and with nothing else:
[{{"question": "...", "paraphrase": "...", "answer": "...", "sentence": "..."}}]"""

OOD = f"""\
Write $count indirect questions with short answers on a passage of the article "$title".

<passage>
$passage
</passage>

No single sentence of the passage answers such a question. It is answered by combining two or more facts of
the passage, or by applying a fact to a case that the passage does not describe: a comparison, a calculation,
a cause or consequence, or a description from which a name follows. The question does not state the facts that
it needs, and one answer only is right. An answer is a name, a number, a date, a place or a short phrase.
{_STYLE}

For each question, also write a sentence, which answers it completely and contains the answer word for word.
Reply with a JSON list of $count objects, and with nothing else:
[{{"question": "...", "answer": "...", "sentence": "..."}}]"""

PROMPTS = {"direct": {"direct-v1": DIRECT}, "ood": {"ood-v1": OOD}}
"""Kind -> its prompts by name and version. A prompt with a name never changes: another wording is another
version."""

PLACEHOLDERS = ("title", "passage", "count")

FIELDS = {
    "direct": ("question", "paraphrase", "answer", "sentence"),
    "ood": ("question", "answer", "sentence"),
}
"""Kind -> the fields of a question that a model writes."""

_MENTION = re.compile(
    r"\b(?:the|this|above|given) (?:passage|article|text|excerpt|document)\b|\bpassage\b", re.IGNORECASE
)

Question = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Passage:
    """A part of an article."""

    article: Article
    number: int
    """Its number within the article, from 1."""
    text: str

    @property
    def place(self) -> str:
        """The article and the number, for messages."""
        return f"{self.article.place}, passage {self.number}"

    @property
    def context(self) -> str:
        """The title and the text, which a teacher reads."""
        return f"{self.article.title}\n\n{self.text}"


@dataclasses.dataclass
class Knowledge:
    """The rows of articles, and a record of what did not become rows."""

    train: list[Row] = dataclasses.field(default_factory=list)
    """Direct questions; the context is the passage with the answer."""
    test: list[Row] = dataclasses.field(default_factory=list)
    """The same in other words, and out-of-distribution questions; the context is the passage alone."""
    texts: list[Row] = dataclasses.field(default_factory=list)
    """The passages, for method cpt."""
    refused: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """(Kind, reason) -> number of questions."""
    failures: list[str] = dataclasses.field(default_factory=list)
    """The passage, the kind and the reason of each request without a usable reply."""


def prepare(
    articles: Sequence[Article], config: Config, track: Callable[[Iterable], Iterator] = iter
) -> Knowledge:
    """Return the rows of articles, from questions that the endpoint of `config.judge` writes.

    Args:
        articles: the articles.
        config: its `judge` and `knowledge` sections are read.
        track: shows progress over the requests.

    Raises:
        SdftError: the endpoint cannot be used or is down, in which case its replies so far are stored; or no
            question is left to train.
    """
    words = config.knowledge.words
    passages = [
        Passage(article, number, text)
        for article in articles
        for number, text in enumerate(split_passages(article.text, words), start=1)
    ]
    knowledge = Knowledge(texts=[{"text": one.context, "title": one.article.title} for one in passages])
    asked: set[str] = set()
    for kind in PROMPTS:
        for passage, questions in zip(passages, _ask(kind, passages, config, track), strict=True):
            if isinstance(questions, Failure):
                knowledge.failures.append(f"{passage.place}, {kind} questions ({questions.reason})")
            else:
                _add(knowledge, kind, passage, questions, asked)
    if not knowledge.train:
        reasons = [*knowledge.failures[:1], *(f"{kind}: {reason}" for kind, reason in knowledge.refused)]
        raise SdftError(
            f"no question is left to train ({'; '.join(reasons[:3])}): use another judge.model, or another "
            "knowledge.direct_prompt."
        )
    return knowledge


def _ask(
    kind: str, passages: Sequence[Passage], config: Config, track: Callable[[Iterable], Iterator]
) -> list[list[Question] | Failure]:
    """Return the questions of one kind on each passage, or the reason why there are none."""
    settings = config.knowledge
    count, setting = (
        (settings.direct, settings.direct_prompt) if kind == "direct" else (settings.ood, settings.ood_prompt)
    )
    template = read_template(setting, f"knowledge.{kind}_prompt", PROMPTS[kind], PLACEHOLDERS)
    if not count:
        return [[] for _ in passages]
    prompts = [
        template.substitute(title=one.article.title, passage=one.text, count=str(count)) for one in passages
    ]
    name = setting if setting in PROMPTS[kind] or setting.startswith("file:") else "own"
    replies = ask_all(prompts, Form(name, lambda reply: read_questions(reply, kind)), config.judge, track)
    down = [one for one in replies if isinstance(one, Failure) and one.is_outage]
    if down:
        raise SdftError(
            f"{len(down)} of {len(replies)} requests for {kind} questions got no reply ({down[0].reason}): "
            "the others are stored, and the same command makes the missing ones only."
        )
    return replies


def read_questions(reply: str, kind: str) -> list[Question]:
    """Return the questions of a reply: a JSON list of objects, which Markdown may fence.

    Raises:
        ValueError: the reply is not such a list, or an object has not the fields of its kind.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", reply.strip(), re.DOTALL)
    form = f"a JSON list of objects with the texts {', '.join(FIELDS[kind])}"
    try:
        items: Any = json.loads(fenced[1] if fenced else reply)
    except (ValueError, RecursionError):
        raise ValueError(f"it is not {form}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"it is not {form}")
    for number, item in enumerate(items, start=1):
        texts = [item.get(name) for name in FIELDS[kind]] if isinstance(item, dict) else [None]
        if not all(isinstance(text, str) and text.strip() and is_utf8(text) for text in texts):
            raise ValueError(f"object {number} is not of the form of {form}")
    return [{name: item[name].strip() for name in FIELDS[kind]} for item in items]


def problem_of(question: Question, passage: str) -> str | None:
    """Return the reason why a question cannot be a row, or None."""
    answer, sentence = normalise(question["answer"]), normalise(question["sentence"])
    asks = [normalise(question[name]) for name in ("question", "paraphrase") if name in question]
    if not answer:
        return "the answer has no words"
    if any(_contains(ask, answer) for ask in asks):
        return "the question contains the answer"
    if not _contains(sentence, answer):
        return "the sentence does not contain the answer"
    if any(_MENTION.search(question.get(name, "")) for name in ("question", "paraphrase", "sentence")):
        return "it mentions the passage"
    if "paraphrase" in question and asks[0] == asks[1]:
        return "the paraphrase is the question"
    if "paraphrase" in question and not _contains(normalise(passage), answer):
        return "the answer is not in the passage"
    return None


def _contains(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "


def _add(
    knowledge: Knowledge, kind: str, passage: Passage, questions: Sequence[Question], asked: set[str]
) -> None:
    """Add the rows of the questions on a passage, and count those that are refused.

    Args:
        knowledge: the rows so far.
        kind: `direct` or `ood`.
        passage: the passage.
        questions: what a model wrote.
        asked: the questions so far, normalised; those that become rows are added.
    """
    for question in questions:
        wordings = [question[name] for name in ("question", "paraphrase") if name in question]
        reason = problem_of(question, passage.context)
        if reason is None and asked & {normalise(wording) for wording in wordings}:
            reason = "it has been asked before"
        if reason:
            knowledge.refused[kind, reason] += 1
            continue
        asked |= {normalise(wording) for wording in wordings}
        row = {"answer": question["answer"], "skill": kind, "article": passage.article.title}
        if kind == "direct":
            context = f"{passage.context}\n\nQuestion: {wordings[0]}\nAnswer: {question['sentence']}"
            taught = {"demonstration": question["sentence"], "context": context}
            knowledge.train.append({"prompt": user_prompt(wordings[0]), **taught, **row})
        knowledge.test.append({"prompt": user_prompt(wordings[-1]), "context": passage.context, **row})
