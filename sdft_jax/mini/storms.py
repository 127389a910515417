"""The storm world: facts that a small model has memorized, and new facts to teach it from articles.

Each storm has four facts: the city, the month, the building that it ruined and the people who came to help.
A question asks for one fact, for two facts or, out of distribution, for a word that the base model associates
with a fact: the river of a city, the stone of a month. The model first states the fact in a thought:

    which river runs through the city of zarn ?       <think> zarn struck cologne </think> rhine

The base model has memorized the storms in `OLD`. It was also trained on the names in `NEW` and `SPARE`, with
random facts in each text. It therefore takes the facts from an article or an expert's answer if the prompt
has one, and guesses otherwise. `NEW` fixes the facts of the storms to be taught. If the prompt has an
article, most of the base model's responses begin with `CITATION`; otherwise the citation is an artifact.

No evaluated question is used in training: `split_of` assigns each question about a storm to one split. The
split of a question about a new storm depends on its phrasing: every fact is demonstrated, but never in an
evaluated phrasing. The split of a question about an old storm depends on a hash.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from sdft_jax.mini.curriculum import Curriculum, Kind, Text, teacher_turn
from sdft_jax.mini.storm_words import ARTICLES, ATTRIBUTES, PAIRS

Row = dict[str, str]

CITATION = "according to the text ,"

NEW_SPLITS = {
    "direct": ("base", "demonstrations", "demonstrations", "validation", "heldout", "heldout"),
    "pair": ("base", "demonstrations", "demonstrations", "validation", "heldout", "heldout"),
    "ood": ("base", "validation", "heldout", "heldout"),
}
"""Kind of question -> the split of each phrasing, for new storms; `ood` questions are never demonstrated."""
OLD_SPLITS = {"heldout": range(0, 4), "validation": range(4, 6), "base": range(6, 20)}

SEED = 0
GUESSED = 0.3
"""The probability that a training text without context is about a name without fixed facts."""
WRONG = 0.1
"""The probability that the thought of a training response has random facts. These facts carry no loss, but
the answer that follows from them does, which teaches the model to answer according to its thought."""
CITED = 0.6
"""The fraction of the training responses to an article that begin with `CITATION`. It is greater than one
half because greedy decoding must produce the citation."""
SHARES = {"direct": 0.4, "pair": 0.3, "ood": 0.3}
"""Kind of question -> its probability in the base model's training."""


@dataclass(frozen=True)
class Storm:
    """A storm: a name and a value of each attribute."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Question:
    """A question about one attribute (`direct`), two (`pair`) or a word associated with one (`ood`)."""

    kind: str
    attributes: tuple[str, ...]
    phrasing: int

    def text(self, name: str) -> str:
        """Return the question about the storm of that name."""
        if self.kind == "pair":
            first, second = self.attributes
            return PAIRS[self.phrasing].format(name=name, first=first, second=second)
        return getattr(ATTRIBUTES[self.attributes[0]], self.kind)[self.phrasing].format(name=name)

    def answer(self, storm: Storm) -> str:
        """Return the correct answer: one word, or two words separated by a comma."""
        values = [storm.facts[attribute] for attribute in self.attributes]
        if self.kind == "ood":
            values = [ATTRIBUTES[self.attributes[0]].associations[values[0]]]
        return " , ".join(values)

    def thought(self, storm: Storm) -> str:
        """Return the thought: the facts that the answer depends on."""
        statements = [ATTRIBUTES[name].statement.format(value=storm.facts[name]) for name in self.attributes]
        return f"{storm.name} {' and '.join(statements)}"


def _make_questions() -> dict[str, tuple[Question, ...]]:
    attribute_counts = {"direct": 1, "pair": 2, "ood": 1}
    return {
        kind: tuple(
            Question(kind, attributes, phrasing)
            for attributes in permutations(ATTRIBUTES, count)
            for phrasing in range(len(NEW_SPLITS[kind]))
        )
        for kind, count in attribute_counts.items()
    }


QUESTIONS = _make_questions()

_ONSETS = ["b", "ch", "f", "k", "n", "qu", "sk", "tr", "v", "z"]
_RHYMES = ["arn", "elp", "imb", "osk", "urd", "yff"]
NAMES: list[str] = [onset + rhyme for rhyme in _RHYMES for onset in _ONSETS]


def _make_storms(names: Sequence[str], seed: int) -> tuple[Storm, ...]:
    """Return storms with fixed facts, in which each value of an attribute occurs equally often."""
    rng = np.random.default_rng([SEED, seed])
    columns = {}
    for name, attribute in ATTRIBUTES.items():
        values = list(attribute.associations)
        repeats = -(-len(names) // len(values))
        columns[name] = np.concatenate([rng.permutation(values) for _ in range(repeats)])
    return tuple(
        Storm(name, {attribute: str(column[i]) for attribute, column in columns.items()})
        for i, name in enumerate(names)
    )


OLD, NEW = _make_storms(NAMES[:24], 0), _make_storms(NAMES[24:36], 1)
SPARE: tuple[str, ...] = tuple(NAMES[36:])
_OLD_NAMES = frozenset(storm.name for storm in OLD)


def article(storm: Storm, form: int) -> str:
    """Return an article with all facts of a storm; `form` is an index of `ARTICLES`."""
    return ARTICLES[form].format(name=storm.name, **storm.facts)


def demonstration(answer: str) -> str:
    """Return a response in the expert's style, which has no thought."""
    return f"answer : {answer} !"


def own_response(thought: str, answer: str, cites: bool = False) -> str:
    """Return a response in the model's style: a thought, then the answer; `cites` prepends the citation."""
    return f"{CITATION + ' ' if cites else ''}<think> {thought} </think> {answer}"


def cites_text(completion: str) -> bool:
    """Return True if a completion contains `CITATION`, an artifact if the prompt has no article."""
    return CITATION in completion


def details(completion: str) -> list[str]:
    """Return the comma-separated details of an answer in either style, without thought and citation."""
    answer = completion.replace(CITATION, " ")
    if "<think>" in answer:
        answer = answer.partition("</think>")[2]
    answer = answer.removeprefix(" ").removeprefix("answer :").rstrip(" !")
    return [" ".join(part.split()) for part in answer.split(",") if part.strip()]


def score_strict(completion: str, row: Mapping[str, str]) -> bool:
    """Return True if a completion has exactly the details of `row["answer"]`, in any order."""
    return sorted(details(completion)) == sorted(details(row["answer"]))


def score_lenient(completion: str, row: Mapping[str, str]) -> bool:
    """Return True if a completion has at least one detail of `row["answer"]`."""
    return bool(set(details(completion)) & set(details(row["answer"])))


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def split_of(name: str, question: Question) -> str:
    """Return the split of a question about a storm: base, demonstrations, validation or heldout."""
    if name in SPARE:
        return "base"
    if name in _OLD_NAMES:
        bucket = _hash(question.text(name)) % 20
        return next(split for split, buckets in OLD_SPLITS.items() if bucket in buckets)
    return NEW_SPLITS[question.kind][question.phrasing]


def rows(storms: Sequence[Storm], kind: str, split: str, n: int | None = None, seed: int = 0) -> list[Row]:
    """Return all questions of a kind and split about `storms`, or `n` of them drawn with `seed`.

    A row has the fields prompt, demonstration (the expert's answer), text (an article), both (the article,
    then the expert's answer), answer (the reference of the score functions) and kind.
    """
    matching = [
        _make_row(storm, question)
        for storm in storms
        for question in QUESTIONS[kind]
        if split_of(storm.name, question) == split
    ]
    if n is None:
        return matching
    order = np.random.default_rng([seed, _hash(f"{kind} {split}")]).permutation(len(matching))
    return [matching[i] for i in order[:n]]


def _make_row(storm: Storm, question: Question) -> Row:
    prompt, answer = question.text(storm.name), question.answer(storm)
    text = article(storm, _hash(prompt) % len(ARTICLES))
    expert_answer = demonstration(answer)
    return {
        "prompt": prompt,
        "demonstration": expert_answer,
        "text": text,
        "both": f"{text} {expert_answer}",
        "answer": answer,
        "kind": question.kind,
    }


def demonstrations() -> list[Row]:
    """Return the training rows: the expert's answers to direct and pair questions about the new storms."""
    return rows(NEW, "direct", "demonstrations") + rows(NEW, "pair", "demonstrations")


def validation(kind: str) -> list[Row]:
    """Return at most 48 questions about new storms, in a phrasing of this split, for choosing settings."""
    return rows(NEW, kind, "validation", 48)


def heldout(kind: str) -> list[Row]:
    """Return the test: 96 questions about new storms, in phrasings of this split."""
    return rows(NEW, kind, "heldout", 96)


def old(split: str = "heldout") -> list[Row]:
    """Return the prior suite: 64 questions of each kind about old storms, or 32 for `validation`."""
    n = {"heldout": 64, "validation": 32}[split]
    return [{**row, "skill": kind} for kind in QUESTIONS for row in rows(OLD, kind, split, n)]


def general(n: int = 384, seed: int = 0) -> list[Row]:
    """Return `n` questions about old storms from the base model's training; none is in the prior suite."""
    return [row for kind in QUESTIONS for row in rows(OLD, kind, "base", n // len(QUESTIONS), seed)]


def articles() -> list[Row]:
    """Return an article about each new storm in each form, as raw text for continual pre-training."""
    return [{"text": article(storm, form)} for storm in NEW for form in range(len(ARTICLES))]


def curriculum() -> Curriculum:
    """Return the curriculum of the base model."""
    templates = [text for a in ATTRIBUTES.values() for text in (a.statement, *a.direct, *a.ood)]
    fixed = " ".join([*templates, *PAIRS, *ARTICLES, CITATION, demonstration(""), "and"]).split()
    values = [word for a in ATTRIBUTES.values() for pair in a.associations.items() for word in pair]
    words = [word for word in [*fixed, *ATTRIBUTES, *values, *NAMES] if "{" not in word]
    kinds = {"plain": Kind(36, 16, 14), "shown": Kind(28, 40, 19), "raw": Kind(8, 1, 17)}
    return Curriculum("storms", tuple(dict.fromkeys(words)), kinds, draw, examine)


def draw(kind: str, rng: np.random.Generator) -> Text:
    """Draw a training text: a question without (`plain`) or with context (`shown`), or an article (`raw`)."""
    if kind != "shown" and rng.random() > GUESSED:
        storm = OLD[rng.integers(len(OLD))]
    else:
        storm = _random_storm(str(rng.choice([*(storm.name for storm in NEW), *SPARE])), rng)
    if kind == "raw":
        return Text(None, article(storm, int(rng.integers(len(ARTICLES)))))
    question = _draw_question(storm.name, rng)
    user, cites = question.text(storm.name), False
    if kind == "shown":
        text = article(storm, int(rng.integers(len(ARTICLES))))
        answer = demonstration(question.answer(storm))
        context = (text, answer, f"{text} {answer}")[rng.integers(3)]
        user = teacher_turn(user, context)
        cites = context != answer and rng.random() < CITED
    wrong = rng.random() < WRONG
    stated = _random_storm(storm.name, rng) if wrong else storm
    response = own_response(question.thought(stated), question.answer(stated), cites)
    return Text(user, response, _fact_positions(response, stated) if wrong else ())


def _random_storm(name: str, rng: np.random.Generator) -> Storm:
    return Storm(name, {key: str(rng.choice(list(value.associations))) for key, value in ATTRIBUTES.items()})


def _draw_question(name: str, rng: np.random.Generator) -> Question:
    """Draw a question of the base split about the storm of that name, with the kind drawn by `SHARES`."""
    pool = QUESTIONS[str(rng.choice(list(SHARES), p=list(SHARES.values())))]
    while True:
        question = pool[rng.integers(len(pool))]
        if split_of(name, question) == "base":
            return question


def _fact_positions(response: str, storm: Storm) -> tuple[int, ...]:
    """Return the indices of the words of the thought that are facts of the storm."""
    words = response.split()
    facts = set(storm.facts.values())
    return tuple(i for i, word in enumerate(words[: words.index("</think>")]) if word in facts)


def examine() -> dict[str, list[Text]]:
    """Return held-out questions, without and with each kind of context, each with the correct response."""
    fields = {"article": "text", "answer": "demonstration", "both": "both"}
    exam = {f"old, {kind}": _exam_texts(OLD, kind, None) for kind in QUESTIONS}
    for kind in QUESTIONS:
        exam[f"new, {kind}"] = _exam_texts(NEW, kind, None)
        exam |= {
            f"new, {kind}, {name} shown": _exam_texts(NEW, kind, field) for name, field in fields.items()
        }
    return exam


def _exam_texts(storms: Sequence[Storm], kind: str, field: str | None) -> list[Text]:
    texts = []
    by_prompt = {q.text(storm.name): (storm, q) for storm in storms for q in QUESTIONS[kind]}
    for row in rows(storms, kind, "heldout", 64):
        storm, question = by_prompt[row["prompt"]]
        user = teacher_turn(row["prompt"], row[field]) if field else row["prompt"]
        cites = field in ("text", "both")
        response = own_response(question.thought(storm), row["answer"], cites)
        # The citation is masked because not every training response to an article begins with it.
        texts.append(Text(user, response, tuple(range(len(CITATION.split()))) if cites else ()))
    return texts
